"""Fixed position embeddings of token grids, for encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine-cosine position embeddings [T, width] of a token grid with any number of axes, float32.

    Each axis gets an equal part of the width: sines, then cosines, of position / 10000^(k / K) (Vaswani et al. 2017, section
    3.5, axis by axis as in MAE). Columns that do not divide evenly stay zero.

    Raises:
        ValueError: the width is too small for a sine and a cosine of each axis.
    """
    each = width // (2 * len(grid))
    if each == 0:
        raise ValueError(f"got width {width} for a grid of {len(grid)} axes, wanted at least {2 * len(grid)}")
    frequencies = 10000.0 ** (-torch.arange(each, dtype=torch.float64) / each)
    places = torch.meshgrid(*[torch.arange(cells, dtype=torch.float64) for cells in grid], indexing="ij")
    parts = []
    for place in places:
        angles = place.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, 1), (0, width - 2 * len(grid) * each)).float()
