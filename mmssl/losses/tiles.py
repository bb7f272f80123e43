"""Logits tile by tile, for losses over all pairs without a [B, G] matrix in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmssl.losses.candidates import first_hits, left_out_negatives, over_present, positive_indices, same_ids
from mmssl.losses.products import Products, inner_products


def tile_size(device: torch.device) -> int:
    """Default number of rows and columns of a tile on a device.

    On CPUs 2048, which fits into the cache; smaller tiles are up to 8 % slower. On GPUs 8192, because each tile costs kernel
    launches.
    """
    return 2048 if device.type == "cpu" else 8192


@dataclass(frozen=True)
class TiledScores:
    """The logits matrix, logits[i, j] = scale * <a_i, b_j>, computed as square tiles.

    Attributes:
        a: [B, E] rows of this process.
        b: [G, E] candidates; candidate `offset + i` is the positive of row i.
        scale: [] multiplier.
        offset: candidate number of the first row's positive.
        size: rows and columns of a tile.
        products: how tiles are multiplied, see `inner_products`.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    offset: int
    size: int
    products: Products = "float32"

    def __iter__(self) -> Iterator[Tile]:
        """Iterate over all tiles, row by row. A tile is valid until the next one: they share one buffer."""
        for tile in self.blank():
            logits = inner_products(tile.scaled, tile.candidates, self.products)
            yield replace(tile, logits=logits)
            logits.untyped_storage().resize_(0)

    def blank(self) -> Iterator[Tile]:
        """Iterate over all tiles without their logits, which are [0]."""
        for i in range(0, len(self.a), self.size):
            scaled = self.a[i : i + self.size] * self.scale
            for j in range(0, len(self.b), self.size):
                candidates = self.b[j : j + self.size]
                yield Tile(scaled[:0, 0], scaled, candidates, i, j, self.offset + i - j, self.products)


@dataclass(frozen=True)
class Tile:
    """One tile of the logits matrix.

    Attributes:
        logits: [n, m], to be overwritten in place.
        scaled: [n, E] scale * a, the tile's rows.
        candidates: [m, E] b, the tile's columns.
        top: number of the first row.
        left: number of the first column.
        shift: the positive of the tile's row r is its column r + shift, if it has this column.
        products: how tiles are multiplied, see `inner_products`.
    """

    logits: Tensor
    scaled: Tensor
    candidates: Tensor
    top: int
    left: int
    shift: int
    products: Products

    @property
    def rows(self) -> slice:
        """Slice of the tile's rows among all rows [B]."""
        return slice(self.top, self.top + len(self.scaled))

    @property
    def columns(self) -> slice:
        """Slice of the tile's columns among all candidates [G]."""
        return slice(self.left, self.left + len(self.candidates))

    @property
    def diagonal(self) -> Tensor:
        """Logits of the tile's positives, a view; empty if it has none."""
        return self.logits.diagonal(self.shift)

    @property
    def diagonal_rows(self) -> slice:
        """Slice among all rows [B] of those with their positive in this tile."""
        start = self.top + max(0, -self.shift)
        return slice(start, start + len(self.diagonal))

    @property
    def positives(self) -> slice:
        """Slice of the tile's rows among all candidates [G]: their positives."""
        start = self.shift + self.left
        return slice(start, start + len(self.scaled))

    def same_ids(self, ids: Tensor | None) -> Tensor | None:
        """Mask of equal samples, [n, m] bool, True where row and candidate share any of the ids [G, k]; None without ids."""
        return None if ids is None else same_ids(ids[self.positives], ids[self.columns])

    def hide(self, present: Tensor | None) -> None:
        """Set logits to -inf in rows and columns of samples that are not present ([G] bool)."""
        if present is not None:
            self.logits.masked_fill_(~(present[self.positives, None] & present[self.columns]), -torch.inf)

    def add_to_rows(self, gradient: Tensor) -> None:
        """Add logits @ candidates to the tile's rows of a gradient [B, E]."""
        gradient[self.rows].add_(inner_products(self.logits, self.candidates.T, self.products))

    def add_to_columns(self, gradient: Tensor) -> None:
        """Add logits.T @ scaled to the tile's columns of a gradient [G, E]."""
        if self.products == "float32":
            gradient[self.columns].addmm_(self.logits.T, self.scaled)
        else:
            gradient[self.columns].add_(inner_products(self.logits.T, self.scaled.T, self.products))

    def sums(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums over rows [n] and over columns [m], weighted by sample with `weights` [G]; None: all weights are 1."""
        if weights is None:
            return self.logits.sum(1), self.logits.sum(0)
        return self.logits.mv(weights[self.columns]), self.logits.T.mv(weights[self.positives])


def tiled_scores(
    a: Tensor,
    b: Tensor,
    all_b: Tensor | None,
    scale: Tensor | float,
    offset: int,
    size: int | None,
    present: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Check rows, candidates, scale and tile size, and cast types below float32 to float32.

    Samples that are not present become zeros, so that they add nothing to any gradient and get none.

    Raises:
        ValueError: shapes, scale, offset or size do not match.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    candidates = b if all_b is None else all_b
    positive_indices(a, candidates, offset)
    if size is not None and size < 1:
        raise ValueError(f"got tile size {size}, wanted at least 1, e.g. 1024")
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    scale = scalar_tensor("scale", scale, dtype, a.device)
    a, candidates = a.to(dtype), candidates.to(dtype)
    if present is not None:
        a = a.masked_fill(~present[offset : offset + len(a), None], 0)
        candidates = candidates.masked_fill(~present[:, None], 0)
    return a, candidates, scale, size or tile_size(a.device)


def scalar_tensor(name: str, x: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a tensor [] or [1], as a tensor [] with gradient to the original.

    Raises:
        ValueError: it has more than one element.
    """
    x = torch.as_tensor(x, dtype=dtype, device=device)
    if x.numel() != 1:
        raise ValueError(f"got a {name} of shape {tuple(x.shape)}, wanted one number")
    return x.reshape(())


@torch.no_grad()
def nearest_rate(
    rows: Tensor, candidates: Tensor, target: Tensor, present: Tensor | None = None, ids: Tensor | None = None
) -> Tensor:
    """In-batch accuracy, [] in [0, 1]: how often the positive of a row is its nearest candidate; computed in chunks of rows.

    Args:
        rows: [B, E]. candidates: [G, E]. target: [B], index of the positive of each row.
        present: [G] bool. ids: [G, k]. As in the losses.
    """
    hits = []
    strip = max(1, tile_size(rows.device) ** 2 // len(candidates))
    for part, at in zip(rows.split(strip), target.split(strip), strict=True):
        logits = part @ candidates.T
        out = left_out_negatives(at, len(candidates), present, ids)
        hit = first_hits(logits if out is None else logits.masked_fill_(out, -torch.inf), at)
        hits.append(hit if present is None else hit * present[at])
    return over_present(torch.cat(hits).mean(), present)


@torch.no_grad()
def candidate_counts(target: Tensor, candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor:
    """Number of candidates of each row, [B] float64: its positive and its negatives; 1 for rows that are not present."""
    if ids is None:
        everyone = candidates if present is None else present.sum()
        counts = torch.ones_like(target, dtype=torch.float64) * everyone
        return counts if present is None else counts.where(present[target], 1)
    strip = max(1, tile_size(target.device) ** 2 // candidates)
    out = [left_out_negatives(part, candidates, present, ids) for part in target.split(strip)]
    return torch.cat([candidates - x.sum(1) for x in out if x is not None]).double()


def row_dots(x: Tensor, y: Tensor, size: int) -> Tensor:
    """Row-wise inner products <x_i, y_i> of [B, E], [B] float64, `size` rows at a time. Only the sums are float64."""
    parts = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([(part * other).sum(1, dtype=torch.float64) for part, other in parts])
