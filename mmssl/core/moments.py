"""Mean, variance and covariance over the global batch, with gradient: equal on one process and on many.

Processes may have different numbers of rows. Without any row, every statistic is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.core import distributed


def global_rows(x: Tensor) -> Tensor | int:
    """G, the number of rows of all processes, at least 1.

    Raises:
        ValueError: there is only one process with one row, whose variance is zero.
    """
    if len(x) == distributed.world_size() == 1:
        raise ValueError("batch statistics got 1 row over all processes, wanted at least 2; use a larger batch")
    return distributed.count(x, least=1)


def centre(x: Tensor) -> Tensor:
    """Subtract the mean of each feature, [B, D] -> [B, D]."""
    return x - distributed.total(x.sum(0)) / global_rows(x)


def standardise(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch normalisation without scale and shift, [B, D] -> [B, D].

    Args:
        x: rows of this process.
        eps: added to the biased variance.
    """
    # Two passes: E[x^2] - E[x]^2 in float32 would lose the variance of features far from zero.
    centred = centre(x)
    variance = distributed.total(centred.square().sum(0)) / global_rows(x)
    return centred * torch.rsqrt(variance + eps)


def covariance(x: Tensor) -> Tensor:
    """Unbiased covariance matrix of the features, [B, D] -> [D, D]."""
    centred = centre(x)
    return distributed.total(centred.T @ centred) / (distributed.count(x, least=2) - 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """Entries of a square matrix off its diagonal, [D, D] -> [D - 1, D]."""
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:]
