"""Batch normalisation over the global batch, in heads and in encoders: the same numbers on one process and on many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.compat import BatchNorm


class GlobalBatchNorm(nn.Module):
    """Normalise each feature by its mean and biased variance over the rows of all processes, then scale and shift.

    In one process it equals `nn.BatchNorm1d` in training mode; on many it equals one process that sees all rows, gradients too.
    It keeps no running statistics, because heads are not used at evaluation, and normalises by the batch in both modes. It
    couples samples and therefore belongs into an objective's `criterion`, never into `encode`.

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
        """[rows, width] of this process -> [rows, width]. Every process must have as many rows.

        Raises:
            ValueError: one row in all, whose variance is zero.
        """
        rows = len(x) * distributed.world_size()
        if rows < 2:
            raise ValueError("batch normalisation got 1 row over all processes, wanted at least 2: use a larger batch")
        # Two passes: E[x^2] - E[x]^2 in float32 would lose the variance of features far from zero.
        centred = x - distributed.total(x.sum(0)) / rows
        variance = distributed.total(centred.square().sum(0)) / rows
        out = centred * torch.rsqrt(variance + self.eps)
        return out if self.weight is None or self.bias is None else out * self.weight + self.bias


class SyncBatchNorm(BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` whose statistics in training are those of all processes' inputs, running ones too.

    Equals one process that sees all inputs, in values, gradients and buffers; processes may have different numbers of rows. Unlike
    `nn.SyncBatchNorm` it runs on CPUs. It has the parameters, buffers and names of the layer that it stands for. For encoders:
    it couples the samples of one forward pass, so that micro-batches of a pass are not the whole.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"batch normalisation of {self.num_features} features got {list(x.shape)}, wanted [B, C, ...]"
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] of this process -> [B, C, ...].

        Raises:
            ValueError: another number of features, or one value of each in all, whose variance is zero.
        """
        self._check_input_dim(x)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        exact, others = x.float() if x.dtype != torch.float64 else x, [d for d in range(x.ndim) if d != 1]
        # Filled on the device: a number that is copied there would make the host wait in every layer.
        count = distributed.total_detached(exact.new_full((), x.numel() / x.shape[1]))
        if x.numel() == x.shape[1] and count < 2:  # asks the device only where it may be so
            raise ValueError("batch normalisation got 1 value of each feature over all processes, wanted at least 2")
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean = distributed.total(exact.sum(others)) / count
        centred = exact - mean.view(shape)
        variance = distributed.total(centred.square().sum(others)) / count
        if self.training:
            self._follow(mean.detach(), variance.detach() * (count / (count - 1)))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; with momentum None they are the mean of all batches."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise(module: nn.Module) -> int:
    """Put a `SyncBatchNorm` in the place of every batch normalisation in a module; returns how many there were.

    Parameters and buffers stay the same tensors.

    Raises:
        ValueError: a batch normalisation of another kind, whose additions would be lost.
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
                f"{type(child).__name__} {name!r} is more than batch normalisation and cannot be synchronised"
            )
        else:
            count += synchronise(child)
    return count
