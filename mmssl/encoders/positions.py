"""Position embeddings and their resampling: a row for each prefix token, then one for each cell of the grid in reading order."""

from __future__ import annotations

from math import isqrt, prod

import torch
import torch.nn.functional as F
from torch import Tensor

TokenGrid = tuple[int, int]


def resize_positions(table: Tensor, old: TokenGrid, new: TokenGrid, prefix: int) -> Tensor:
    """Interpolate position embeddings to another grid, bicubic and antialiased; prefix rows stay (as open_clip does).

    Args:
        table: [prefix + rows * columns of `old`, D].
        old: grid of the table.
        new: grid of the result.
        prefix: number of leading rows without a cell, such as the class token's.

    Returns:
        [prefix + rows * columns of `new`, D]; the table itself if the grids are equal.
    """
    if old == new:
        return table
    if torch.compiler.is_compiling():
        # torch has no backward pass of a compiled kernel with a variable grid; grids are few, so each gets a kernel.
        new = (_constant(new[0]), _constant(new[1]))
    cells = table[prefix:].float().T.reshape(-1, *old)  # [D, rows, columns]
    rows, columns = (_resampling(before, after, cells) for before, after in zip(old, new, strict=True))
    with torch.autocast(table.device.type, enabled=False):
        cells = rows @ cells @ columns.T
    return torch.cat([table[:prefix], cells.permute(1, 2, 0).flatten(0, 1).to(table.dtype)])


def _resampling(before: int, after: int, like: Tensor) -> Tensor:
    """Interpolation of one axis as a matrix [after, before]: its columns are the resampled unit vectors.

    Products with it repeat bit by bit; torch's kernel has no deterministic gradient on CUDA, and is wrong for one column on a CPU.
    """
    units = torch.eye(before, dtype=like.dtype, device=like.device)[None, :, None]  # [1, before, 1, before]
    return F.interpolate(units, size=(1, after), mode="bicubic", antialias=True, align_corners=False)[0, :, 0].T


def _constant(size: int) -> int:
    """The same number as a constant for torch.compile: the length of a list is not symbolic."""
    return len([None] * size)


def fit_positions(state: dict[str, Tensor], name: str, grid: TokenGrid, prefix: int) -> None:
    """Resample `state[name]`, in place, from another square grid to `grid`; leave anything else alone."""
    table = state.get(name)
    if table is None or len(table) == prefix + prod(grid):
        return
    side = isqrt(len(table) - prefix)
    if side**2 == len(table) - prefix:
        state[name] = resize_positions(table, (side, side), grid, prefix)


def fit_columns(state: dict[str, Tensor], name: str, grid: TokenGrid, prefix: int) -> None:
    """Resample `state[name]`, in place, from another number of columns to `grid`; the number of rows must be equal."""
    table = state.get(name)
    cells = 0 if table is None else len(table) - prefix
    if table is not None and cells > 0 and cells % grid[0] == 0:
        state[name] = resize_positions(table, (grid[0], cells // grid[0]), grid, prefix)


KEPT_POSITIONS = 20
"""First positions that stay as they are where a table of texts is stretched; most captions of CLIP's training are shorter."""


def fit_length(table: Tensor, length: int) -> Tensor:
    """Fit position embeddings of texts to another length: the first rows for a shorter one, stretched as in Long-CLIP for a longer.

    The first `KEPT_POSITIONS` rows stay, so that short texts keep their embeddings; the rest is interpolated linearly, and the last
    step goes on as a straight line (arXiv:2403.15378, section 3.2). A table with fewer than two rows after those is left alone.

    Args:
        table: [T, D].
        length: number of rows wanted.
    """
    rest = len(table) - KEPT_POSITIONS
    if length <= len(table) or rest < 2:
        return table[:length]
    places = torch.arange(length - KEPT_POSITIONS) * (rest / (length - KEPT_POSITIONS)) + KEPT_POSITIONS
    low = places.long().clamp(max=len(table) - 2)
    share = (places - low)[:, None]
    stretched = torch.lerp(table[low].float(), table[low + 1].float(), share.to(torch.float32))
    return torch.cat([table[:KEPT_POSITIONS], stretched.to(table.dtype)])


def sinusoidal_positions(count: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position embeddings [count, width], of wavelengths from 2 pi to 20000 pi (arXiv:1706.03762, section 3.5)."""
    half = -(-width // 2)
    angle = torch.arange(count, device=device)[:, None] * 10_000.0 ** (-torch.arange(half, device=device) / half)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]
