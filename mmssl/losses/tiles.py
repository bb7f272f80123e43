"""Logits tile by tile: what losses over all pairs walk through instead of holding a [B, G] matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.core.compat import onednn_linear
from mmssl.losses.candidates import first_hits, no_negatives, over_present, positives, same

_LINEAR = onednn_linear()


def edge(device: torch.device) -> int:
    """Rows and columns of a tile.

    2048 fits into the cache of a processor, where smaller tiles are up to 8 % slower. Elsewhere 8192, because each tile costs
    launches.
    """
    return 2048 if device.type == "cpu" else 8192


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T without gradient, [n, m] of [n, k] and [m, k].

    In float32 on a processor by oneDNN, which is 4 to 9 % faster at tiles than the library behind `torch.mm` (MKL, on AMD Zen 4).
    """
    if _LINEAR is None or x.device.type != "cpu" or x.dtype != torch.float32:
        return x @ y.T
    return _LINEAR(x, y)


@dataclass(frozen=True)
class TiledScores:
    """Rows a, candidates b and the scale between them: logits[i, j] = scale * <a_i, b_j>, cut into square tiles.

    Attributes:
        a: [B, E] rows of this process.
        b: [G, E] candidates; candidate `offset + i` is the positive of row i.
        scale: [] multiplier.
        offset: where the positives start.
        size: edge of a tile.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    offset: int
    size: int

    def __iter__(self) -> Iterator[Tile]:
        """All tiles, row by row. A tile is valid until the next one is asked for: there is memory for one at a time."""
        for i in range(0, len(self.a), self.size):
            scaled = self.a[i : i + self.size] * self.scale
            for j in range(0, len(self.b), self.size):
                candidates = self.b[j : j + self.size]
                logits = inner_products(scaled, candidates)
                yield Tile(logits, scaled, candidates, i, j, self.offset + i - j)
                logits.untyped_storage().resize_(0)


@dataclass(frozen=True)
class Tile:
    """One tile of a block.

    Attributes:
        logits: [n, m], to be overwritten in place.
        scaled: [n, E] scale * a of these rows.
        candidates: [m, E] b of these columns.
        top: first row.
        left: first column.
        shift: the positive of the tile's row r stands in its column r + shift, if that is one of its columns.
    """

    logits: Tensor
    scaled: Tensor
    candidates: Tensor
    top: int
    left: int
    shift: int

    @property
    def rows(self) -> slice:
        """The rows among all rows."""
        return slice(self.top, self.top + len(self.scaled))

    @property
    def columns(self) -> slice:
        """The columns among all candidates."""
        return slice(self.left, self.left + len(self.candidates))

    @property
    def diagonal(self) -> Tensor:
        """The positives of this tile, a view into its logits; empty where there are none."""
        return self.logits.diagonal(self.shift)

    @property
    def diagonal_rows(self) -> slice:
        """The rows among all rows whose positives are in this tile."""
        start = self.top + max(0, -self.shift)
        return slice(start, start + len(self.diagonal))

    @property
    def positives(self) -> slice:
        """The rows among all candidates."""
        start = self.shift + self.left
        return slice(start, start + len(self.scaled))

    def same(self, ids: Tensor | None) -> Tensor | None:
        """[n, m] bool, True where row and candidate agree in any of the candidates' ids [G, k]; None without ids."""
        return None if ids is None else same(ids[self.positives], ids[self.columns])

    def hide(self, present: Tensor | None) -> None:
        """Put -inf into rows and columns of samples that are not present ([G] bool)."""
        if present is not None:
            self.logits.masked_fill_(~(present[self.positives, None] & present[self.columns]), -torch.inf)

    def sums(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums of rows [n] and of columns [m], in which sample j of all [G] counts `weights[j]`; None: all count 1."""
        if weights is None:
            return self.logits.sum(1), self.logits.sum(0)
        return self.logits.mv(weights[self.columns]), self.logits.T.mv(weights[self.positives])


def block(
    a: Tensor,
    b: Tensor,
    all_b: Tensor | None,
    scale: Tensor | float,
    offset: int,
    size: int | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Checked rows, candidates, scale and tile size, in float32 where they came in less.

    Samples that are not present become zeros: with that they add nothing to any gradient, and get none.

    Raises:
        ValueError: shapes, scale, offset or size do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    candidates = b if all_b is None else all_b
    positives(a, candidates, offset)
    if size is not None and size < 1:
        raise ValueError(f"got tiles of {size}, wanted at least 1, such as 1024")
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    scale = scalar("scale", scale, dtype, a.device)
    a, candidates = a.to(dtype), candidates.to(dtype)
    if present is not None:
        a = a.masked_fill(~present[offset : offset + len(a), None], 0)
        candidates = candidates.masked_fill(~present[:, None], 0)
    return a, candidates, scale, size or edge(a.device)


def scalar(name: str, x: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number as a tensor [], with gradient to what it was: parameters are also kept as [1].

    Raises:
        ValueError: it is not one number.
    """
    x = torch.as_tensor(x, dtype=dtype, device=device)
    if x.numel() != 1:
        raise ValueError(f"got a {name} of shape {tuple(x.shape)}, wanted one number")
    return x.reshape(())


@torch.no_grad()
def nearest_rate(
    rows: Tensor, candidates: Tensor, target: Tensor, present: Tensor | None = None, ids: Tensor | None = None
) -> Tensor:
    """How often the positive of a row is the nearest of its candidates, [] in [0, 1], from as many rows at a time as make one tile.

    Args:
        rows: [B, E]. candidates: [G, E]. target: [B], the positive of each row.
        present: [G] bool. ids: [G, k]. As in the losses.
    """
    hits = []
    strip = max(1, edge(rows.device) ** 2 // len(candidates))
    for part, at in zip(rows.split(strip), target.split(strip), strict=True):
        logits = part @ candidates.T
        out = no_negatives(at, len(candidates), present, ids)
        hit = first_hits(logits if out is None else logits.masked_fill_(out, -torch.inf), at)
        hits.append(hit if present is None else hit * present[at])
    return over_present(torch.cat(hits).mean(), present)


@torch.no_grad()
def candidate_counts(target: Tensor, candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor:
    """[B] float64: among how many each row has to find its positive; 1 for rows that are not present."""
    if ids is None:
        everyone = candidates if present is None else present.sum()
        counts = torch.ones_like(target, dtype=torch.float64) * everyone
        return counts if present is None else counts.where(present[target], 1)
    strip = max(1, edge(target.device) ** 2 // candidates)
    out = [no_negatives(part, candidates, present, ids) for part in target.split(strip)]
    return torch.cat([candidates - x.sum(1) for x in out if x is not None]).double()


def row_dots(x: Tensor, y: Tensor, size: int) -> Tensor:
    """[B] float64, <x_i, y_i> of two [B, E], `size` rows at a time. Products are rounded as their type is, sums are not."""
    parts = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([(part * other).sum(1, dtype=torch.float64) for part, other in parts])
