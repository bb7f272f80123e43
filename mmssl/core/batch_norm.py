"""Synchronised batch norm (SyncBatchNorm) over the global batch, in heads and in encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.compat import BatchNorm
from mmssl.core.moments import standardise


class GlobalBatchNorm(nn.Module):
    """Batch norm of a head over the rows of all processes: each feature by its mean and biased variance, then scale and shift.

    In one process it equals `nn.BatchNorm1d` in training mode; on many it equals one process that sees all rows, gradients too.
    It has no running statistics, because heads are not used at evaluation, and normalises by the batch in both modes. It
    couples samples, so it belongs into an objective's `criterion`, never into `encode`.

    Args:
        width: number of features.
        affine: whether a scale and a shift are learned.
        eps: added to the variance.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """[rows, width] of this process -> [rows, width]. Processes may have different numbers of rows.

        Raises:
            ValueError: one row in all, whose variance is zero.
        """
        out = standardise(x, self.eps)
        return out if self.weight is None or self.bias is None else out * self.weight + self.bias


class SyncBatchNorm(BatchNorm):
    """SyncBatchNorm: `nn.BatchNorm1d`, `2d` or `3d` with statistics over the inputs of all processes in training.

    Equals one process that sees all inputs, in values, gradients and buffers (running statistics too); processes may have different
    numbers of rows. Unlike `nn.SyncBatchNorm` it runs on CPUs. It has the parameters, buffers and names of the layer that it
    replaces. For encoders: it couples the samples of one forward pass, so micro-batches give other numbers than the whole batch.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"batch norm of {self.num_features} features got shape {list(x.shape)}, wanted [B, {self.num_features}, ...]"
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] of this process -> [B, C, ...].

        Raises:
            ValueError: `x` has another number of features, or one value of each over all processes, whose variance is zero.
        """
        self._check_input_dim(x)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        exact, others = x.float() if x.dtype != torch.float64 else x, [d for d in range(x.ndim) if d != 1]
        # Filled on the device: copying a number there would make the host wait in every layer.
        count = distributed.total_detached(exact.new_full((), x.numel() / x.shape[1]))
        if x.numel() == x.shape[1] and count < 2:  # reads from the device only where it is possible
            raise ValueError(
                "batch norm got 1 value of each feature over all processes, wanted at least 2; use a larger batch"
            )
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean = distributed.total(exact.sum(others)) / count
        centred = exact - mean.view(shape)
        variance = distributed.total(centred.square().sum(others)) / count
        if self.training:
            self._update_running_statistics(mean.detach(), variance.detach() * (count / (count - 1)))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running mean and variance; with momentum None they are the mean over all batches."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_batch_norm(module: nn.Module) -> int:
    """Replace every batch norm of a module by `SyncBatchNorm`; returns the number of replaced layers.

    Parameters and buffers stay the same tensors.

    Raises:
        ValueError: a layer is a subclass of batch norm with further behaviour, which would be lost.
    """
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, BatchNorm) and type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            made = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            for own, tensor in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                setattr(made, own, tensor)
            setattr(module, name, made.train(child.training))
            count += 1
        elif isinstance(child, BatchNorm) and not isinstance(child, SyncBatchNorm):
            raise ValueError(
                f"got {type(child).__name__} {name!r}, wanted plain batch norm: it does more, and cannot be synchronised"
            )
        else:
            count += synchronise_batch_norm(child)
    return count
