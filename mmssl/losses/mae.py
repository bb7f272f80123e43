"""Masked autoencoder (MAE) loss: patches as targets, and the mean squared error of masked tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mmssl.core import distributed


def patch_shape(shape: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """Patch size: extent of one token of `grid` in an input of `shape` [B, C, *spatial], for each axis.

    Raises:
        ValueError: the input has other axes than the grid, or is not a whole multiple of it.
    """
    spatial = tuple(shape[2:])
    if len(spatial) != len(grid) or any(size % cells for size, cells in zip(spatial, grid, strict=True)):
        nearest = [max(size // cells, 1) * cells for size, cells in zip(spatial, grid, strict=False)]
        raise ValueError(
            f"got an input of shape {list(shape)} for a token grid {tuple(grid)}, wanted [B, C, *spatial] with each spatial extent "
            f"a whole multiple of the grid, such as {nearest}: set the size of the input (of sounds and series `seconds`, or "
            "`front_end.frames`) or the encoder's patches so that they tile it"
        )
    return tuple(size // cells for size, cells in zip(spatial, grid, strict=True))


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut [B, C, *spatial] into patches [B, T, P], T in reading order, P = prod(patch) * C with the channel fastest.

    He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), section 3. Any number of spatial axes:
    images and spectrograms have two, video three. Slow loop for images::

        def loop(x, patch):
            B, C, H, W = x.shape
            out = []
            for row in range(0, H, patch[0]):
                for column in range(0, W, patch[1]):
                    values = [
                        x[:, c, row + i, column + j] for i in range(patch[0]) for j in range(patch[1]) for c in range(C)
                    ]
                    out.append(stack(values, 1))
            return stack(out, 1)

    Raises:
        ValueError: patches of this size do not tile the input.
    """
    axes, spatial = len(patch), tuple(x.shape[2:])
    if len(spatial) != axes or any(size % extent for size, extent in zip(spatial, patch, strict=True)):
        raise ValueError(
            f"got an input of shape {list(x.shape)}, wanted [B, C, *spatial] tiled by patches of {tuple(patch)}"
        )
    cells = [size // extent for size, extent in zip(spatial, patch, strict=True)]
    split = [size for pair in zip(cells, patch, strict=True) for size in pair]
    x = x.reshape(*x.shape[:2], *split)  # [B, C, cells0, patch0, cells1, patch1, ...]
    x = x.permute(0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1)
    return x.reshape(len(x), math.prod(cells), -1)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise each patch of [B, T, P] by its mean and standard deviation, sqrt(unbiased variance + eps).

    The "normalised pixels" target of the paper (section 4.1). With it a prediction of zero has a loss of (P-1)/P.
    """
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def masked_mean_square(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of masked tokens: mean over a token's values, over the masked tokens of a sample, over samples.

    Slow loop::

        def loop(prediction, target, mask):
            samples = []
            for p, t, m in zip(prediction, target, mask):
                samples.append(mean([mean((p[k] - t[k]) ** 2) for k in range(len(m)) if m[k]]))
            return mean(samples)

    Args:
        prediction: [B, T, P] float32.
        target: [B, T, P].
        mask: [B, T] bool, True where the token was hidden; at least one in every sample.

    Returns:
        [] this process' share of the mean over samples.

    Raises:
        ValueError: the shapes do not match.
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:2]:
        raise ValueError(
            f"got prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and mask {tuple(mask.shape)}, "
            "wanted [B, T, P], [B, T, P] and [B, T]"
        )
    error = (prediction - target).square().mean(-1)
    return distributed.mean((error * mask).sum(1) / mask.sum(1))
