"""Patch embedding of vision transformers, for pictures and clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def embed_patches(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Patch embedding by a convolution whose stride is its kernel size, [B, C, *sizes] -> [B, T, D] in reading order.

    On GPUs it is a linear layer of flattened patches, equal up to rounding: cuDNN's kernels are slow for few channels.
    """
    if x.device.type == "cpu":
        return convolution(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
    return F.linear(flat_patches(x, convolution.kernel_size), convolution.weight.flatten(1), convolution.bias)


def flat_patches(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, *sizes] -> patches [B, T, C * patch values] in reading order, values in the order of a convolution's weight."""
    count = len(size)
    for dim in reversed(range(count)):
        x = x.unflatten(2 + dim, (-1, size[dim]))  # type: ignore[no-untyped-call]
    grid, inside = range(2, 2 + 2 * count, 2), range(3, 3 + 2 * count, 2)
    return x.permute(0, *grid, 1, *inside).flatten(1, count).flatten(2)
