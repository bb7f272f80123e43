"""Products of two sets of embeddings, tile by tile: the whole matrix is never in memory. Exact float32."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = {"cpu": (512, 2048), "cuda": (8192, 16384)}
"""Rows and columns of a tile: on a CPU it stays near the cache, on a GPU it fills the chip (512 MiB)."""
STRIPS = 8
"""Strips of rows that a tile of the diagonal is counted in."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Context of exact float32 matrix products and convolutions: no autocast, no TF32, no bfloat16 passes.

    By default convolutions use TF32 on CUDA. The caller's settings are restored at exit.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision()
    conv, rnn = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False  # torch's older switch sets the newer ones too, and may be asked in the meantime
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = conv == "tf32"
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = conv, rnn  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TilePart:
    """Part of a tile: rows of a, columns of b, and where b's owners lie: -1 all before the rows' owners, 1 all after, 0 mixed."""

    rows: slice
    columns: slice
    side: int


class Tiles:
    """The products a b^T as tiles, and parts of them by where b's owners lie beside those of a.

    Args:
        a: [Na, E] float32. b: [Nb, E] float32.
        owner_a: [Na] int64, ascending: which sample each row belongs to. owner_b: [Nb] int64, ascending.
        tile: most rows and columns of a tile; None: chosen for the device.
    """

    def __init__(
        self, a: Tensor, owner_a: Tensor, b: Tensor, owner_b: Tensor, tile: tuple[int, int] | None = None
    ) -> None:
        tile = tile or TILE.get(a.device.type, TILE["cpu"])
        self.owner_a, self.owner_b = owner_a, owner_b
        self.owners = owner_a.tolist(), owner_b.tolist()
        # Tiles of nearly equal size, so that few of their rows are padding.
        self.tile = _even(len(a), tile[0]), _even(len(b), tile[1])
        # All products have one shape: kernels chosen by shape round differently, and equal embeddings must score equally.
        self.a, _ = pad_rows(a, self.tile[0])
        self.b, _ = pad_rows(b, self.tile[1])
        self.out = torch.empty(self.tile, device=a.device)

    def __iter__(self) -> Iterator[tuple[slice, slice, list[TilePart]]]:
        """Every tile, row by row: its rows, its columns, and its parts."""
        (height, width), (owner_a, owner_b) = self.tile, self.owners
        for top, left in itertools.product(range(0, len(owner_a), height), range(0, len(owner_b), width)):
            rows = slice(top, min(top + height, len(owner_a)))
            columns = slice(left, min(left + width, len(owner_b)))
            yield rows, columns, self._parts(rows, columns)

    def _parts(self, rows: slice, columns: slice) -> list[TilePart]:
        """Parts of a tile, which is one part if none of its candidates is near a right one."""
        owner_a, owner_b = self.owners
        whole = _side(owner_a[rows.start], owner_a[rows.stop - 1], owner_b[columns.start], owner_b[columns.stop - 1])
        if whole:
            return [TilePart(rows, columns, whole)]
        found = []
        height = max(1, self.tile[0] // STRIPS)
        for top in range(rows.start, rows.stop, height):
            strip = slice(top, min(top + height, rows.stop))
            near = bisect_left(owner_b, owner_a[strip.start], columns.start, columns.stop)
            far = bisect_right(owner_b, owner_a[strip.stop - 1], columns.start, columns.stop)
            bounds = (columns.start, near, far, columns.stop)
            found += [
                TilePart(strip, slice(start, stop), side)
                for side, (start, stop) in zip((-1, 0, 1), itertools.pairwise(bounds), strict=True)
                if start < stop
            ]
        return found

    def scores(self, rows: slice, columns: slice, parts: list[TilePart]) -> Iterator[tuple[TilePart, Tensor]]:
        """The parts of a tile with their scores, from one product."""
        whole_rows = self.a[rows.start : rows.start + self.tile[0]]
        whole_columns = self.b[columns.start : columns.start + self.tile[1]]
        torch.mm(whole_rows, whole_columns.T, out=self.out)
        for part in parts:
            top, left = part.rows.start - rows.start, part.columns.start - columns.start
            bottom, right = part.rows.stop - rows.start, part.columns.stop - columns.start
            yield part, self.out[top:bottom, left:right]

    def right(self, part: TilePart) -> Tensor:
        """[rows, columns] bool: pairs of one owner."""
        return self.owner_a[part.rows, None] == self.owner_b[None, part.columns]


def _side(first: int, last: int, low: int, high: int) -> int:
    """Where owners low ... high lie beside owners first ... last: -1 before, 1 after, 0 neither."""
    return -1 if high < first else 1 if low > last else 0


def _even(n: int, most: int) -> int:
    """Rows of equal tiles of at most `most` rows that hold n rows with the fewest rows of padding; larger ones before smaller."""
    fewest = max(1, -(-n // most))
    sizes = [min(most, _round_up(-(-n // count), 64)) for count in range(fewest, 2 * fewest + 1)]
    return min(sizes, key=lambda size: (_round_up(n, size), -size))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def pad_rows(x: Tensor, multiple: int) -> tuple[Tensor, int]:
    """Pad `x` with zero rows up to a multiple; returns it and the number of real rows."""
    short = _round_up(len(x), multiple) - len(x)
    return (torch.cat([x, x.new_zeros(short, x.shape[1])]) if short else x.contiguous()), len(x)
