"""Batch normalisation over the global batch: the same numbers on one process and on many."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.core import distributed


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
