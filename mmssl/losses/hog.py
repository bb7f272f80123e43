"""Histograms of oriented gradients (HOG): targets of MaskFeat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.mae import patchify


@torch.no_grad()
def histograms_of_gradients(x: Tensor, patch: Sequence[int], cell: int = 8, bins: int = 9) -> Tensor:
    """Histograms of oriented gradients of each patch of pictures, [B, C, H, W] -> [B, T, cells of a patch * bins * C].

    Wei et al. 2022, "Masked Feature Prediction" (MaskFeat, arXiv:2112.09133), section 3.2, as its code has it: Sobel gradients with
    reflected borders in each channel, their angle modulo 180 degrees, histograms weighted by magnitude in cells, each of unit
    length. Angles are those of (horizontal, vertical) from the vertical. Slow loop for one plane::

        def loop(x, cell, bins):
            H, W = x.shape
            out = [[[0.0] * bins for _ in range(W // cell)] for _ in range(H // cell)]

            def at(r, c):
                r, c = abs(r), abs(c)
                return float(x[min(r, 2 * H - 2 - r), min(c, 2 * W - 2 - c)])

            for r in range(H):
                for c in range(W):
                    gx = sum(w * (at(r + i, c - 1) - at(r + i, c + 1)) for i, w in ((-1, 1), (0, 2), (1, 1)))
                    gy = sum(w * (at(r - 1, c + i) - at(r + 1, c + i)) for i, w in ((-1, 1), (0, 2), (1, 1)))
                    out[r // cell][c // cell][floor(atan2(gx, gy) / pi * bins) % bins] += hypot(gx, gy)
            return [[[v / max(hypot(*h), 1e-12) for v in h] for h in row] for row in out]

    Args:
        x: [B, C, H, W] float32 or float64.
        patch: height and width of a patch, multiples of `cell` that tile the picture.
        cell: side of a cell in pixels.
        bins: number of angles.

    Raises:
        ValueError: cells do not tile the patches, or patches the pictures.
    """
    if x.ndim != 4 or len(patch) != 2 or any(side % cell for side in patch):
        raise ValueError(
            f"got pictures {list(x.shape)} in patches of {list(patch)} pixels, wanted [B, C, H, W] in patches whose sides are "
            f"multiples of cell {cell}"
        )
    C = x.shape[1]
    y = F.pad(x, (1, 1, 1, 1), mode="reflect")
    # Differences first: at reflected borders they are exactly 0, and rounding does not choose the angle there.
    across, down = y[..., :-2] - y[..., 2:], y[..., :-2, :] - y[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]  # [B, C, H, W]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    angle = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    found = x.new_zeros(*x.shape[:2], bins, *x.shape[2:]).scatter_(
        2, angle[:, :, None], torch.hypot(gx, gy)[:, :, None]
    )
    cells = F.avg_pool2d(found.flatten(1, 2), cell).unflatten(1, (C, bins))  # a mean: the length is normalised anyway
    return patchify(F.normalize(cells, dim=2).flatten(1, 2), [side // cell for side in patch])
