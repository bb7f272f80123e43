"""Triton kernels for tiles of InfoNCE: log-sum-exps of rows and columns in one pass, and weights of logits in one pass.

The logits of a tile exist in registers only. Rows and columns have their own maximum, so that any scale is precise. Sums of equal
inputs have equal bits: each program writes its part, and parts are joined in float64 in a fixed order, without atomics.

Not measured on a GPU so far: the tests run the kernels in Triton's interpreter, and compile them for compute capability 9.0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl.losses.tiles import Tile

ROWS, COLUMNS, DEPTH = 128, 128, 32
"""Block of a program: rows, columns, and entries of embeddings that it multiplies at a time (112 KB of shared memory)."""
BLOCKS = 8
"""Blocks of columns that one program takes, one after the other."""
WARPS, STAGES = 8, 3
ELEMENTS = 1024
"""Columns of a program of `weigh`, which takes part of one row."""


@triton.jit  # type: ignore[untyped-decorator]
def sums_kernel(  # type: ignore[no-untyped-def]
    a, b, row_present, column_present, row_ids, column_ids, row_tops, row_sums, column_tops, column_sums, n, m, shift,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, IDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of powers of 2, for each row and column: one part of a row a program, one part of a column a row block.

    a [n, WIDTH] and b [m, WIDTH] float32, contiguous; row_ids [n, IDS] and column_ids [m, IDS] int64; row_tops and row_sums
    [programs on axis 1, n]; column_tops and column_sums [programs on axis 0, m]. Positives, at column row + shift, pairs that
    agree in any id, and samples that are not present are left out.
    """
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows = block * ROWS + tl.arange(0, ROWS)
    real_rows = rows < n
    row_top = tl.full([ROWS], -float("inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    taken_rows = real_rows
    if MASKED:
        taken_rows = tl.load(row_present + rows, mask=real_rows, other=0) != 0
    for number in range(BLOCKS):
        columns = (part * BLOCKS + number) * COLUMNS + tl.arange(0, COLUMNS)
        real_columns = columns < m
        x = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, WIDTH, DEPTH):
            inner = start + tl.arange(0, DEPTH)
            some = inner < WIDTH
            left = tl.load(
                a + rows[:, None] * WIDTH + inner[None, :], mask=real_rows[:, None] & some[None, :], other=0.0
            )
            right = tl.load(
                b + columns[None, :] * WIDTH + inner[:, None], mask=real_columns[None, :] & some[:, None], other=0.0
            )
            x = tl.dot(left, right, x, input_precision="tf32x3")
        taken = real_columns
        if MASKED:
            taken = tl.load(column_present + columns, mask=real_columns, other=0) != 0
        taken_pairs = taken_rows[:, None] & taken[None, :] & (columns[None, :] != rows[:, None] + shift)
        for which in tl.static_range(IDS):
            own = tl.load(row_ids + rows * IDS + which, mask=real_rows, other=0)
            other = tl.load(column_ids + columns * IDS + which, mask=real_columns, other=0)
            taken_pairs = taken_pairs & (own[:, None] != other[None, :])
        x = tl.where(taken_pairs, x, -float("inf"))
        top = tl.max(x, 0)
        shifted = tl.exp2(x - tl.where(top == -float("inf"), 0.0, top)[None, :])
        tl.store(column_tops + block * m + columns, top, mask=real_columns)
        tl.store(column_sums + block * m + columns, tl.sum(shifted, 0), mask=real_columns)
        top = tl.maximum(row_top, tl.max(x, 1))
        base = tl.where(top == -float("inf"), 0.0, top)
        row_sum = row_sum * tl.exp2(row_top - base) + tl.sum(tl.exp2(x - base[:, None]), 1)
        row_top = top
    tl.store(row_tops + part * n + rows, row_top, mask=real_rows)
    tl.store(row_sums + part * n + rows, row_sum, mask=real_rows)


@triton.jit  # type: ignore[untyped-decorator]
def weigh_kernel(  # type: ignore[no-untyped-def]
    logits, row_top, row_factor, column_top, column_factor, row_present, column_present, row_ids, column_ids, m,
    MASKED: tl.constexpr, IDS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Logits [n, m], in place: 2^(x - row_top) * row_factor + 2^(x - column_top) * column_factor.

    0 where one is not present, or both agree in any id.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    real = columns < m
    x = tl.load(logits + row * m + columns, mask=real, other=0.0)
    if MASKED:
        taken = (tl.load(column_present + columns, mask=real, other=0) != 0) & (tl.load(row_present + row) != 0)
        x = tl.where(taken, x, -float("inf"))
    for which in tl.static_range(IDS):
        other = tl.load(column_ids + columns * IDS + which, mask=real, other=0)
        x = tl.where(other != tl.load(row_ids + row * IDS + which), x, -float("inf"))
    by_row = tl.exp2(x - tl.load(row_top + row)) * tl.load(row_factor + row)
    at_column = tl.load(column_top + columns, mask=real, other=0.0)
    by_column = tl.exp2(x - at_column) * tl.load(column_factor + columns, mask=real, other=0.0)
    tl.store(logits + row * m + columns, by_row + by_column, mask=real)


def log_sum_exps(tile: Tile, present: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-sum-exp (base 2) of rows [n] and columns [m] of a tile without its positives, float64; -inf where all is left out.

    Args:
        tile: float32, its logits are not read.
        present: [G] bool; None: all.
        ids: [G, k] int64, pairs that agree in any are left out; None: none are.
    """
    a, b = tile.scaled.contiguous(), tile.candidates.contiguous()
    n, m = len(a), len(b)
    blocks, parts = triton.cdiv(n, ROWS), triton.cdiv(m, COLUMNS * BLOCKS)
    row_tops, row_sums = a.new_empty(2, parts, n).unbind()
    column_tops, column_sums = a.new_empty(2, blocks, m).unbind()
    sums_kernel[blocks, parts](
        a, b, *_masks(tile, present), *_ids(tile, ids), row_tops, row_sums, column_tops, column_sums, n, m, tile.shift,
        WIDTH=a.shape[1], MASKED=present is not None, IDS=_count(ids), ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH,
        BLOCKS=BLOCKS, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return _joined(row_tops, row_sums), _joined(column_tops, column_sums)


def weigh(
    tile: Tile,
    row_top: Tensor,
    row_factor: Tensor,
    column_top: Tensor,
    column_factor: Tensor,
    present: Tensor | None,
    ids: Tensor | None,
) -> None:
    """Replace the logits (base 2) of a tile by their weights, in place: see `weigh_kernel`.

    Args:
        tile: with contiguous float32 logits [n, m].
        row_top, row_factor: [n]. column_top, column_factor: [m].
        present, ids: see `log_sum_exps`.
    """
    n, m = tile.logits.shape
    weigh_kernel[n, triton.cdiv(m, ELEMENTS)](
        tile.logits, row_top.contiguous(), row_factor.contiguous(), column_top.contiguous(), column_factor.contiguous(),
        *_masks(tile, present), *_ids(tile, ids), m, MASKED=present is not None, IDS=_count(ids), ELEMENTS=ELEMENTS,
    )  # fmt: skip


def _masks(tile: Tile, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bytes that tell which rows and columns are present; any tensors where all are."""
    if present is None:
        return tile.scaled, tile.candidates
    there = present.view(torch.uint8)
    return there[tile.positives].contiguous(), there[tile.columns].contiguous()


def _ids(tile: Tile, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ids of rows [n, k] and columns [m, k]; any tensors where there are none."""
    if ids is None:
        return tile.scaled, tile.candidates
    return ids[tile.positives].contiguous(), ids[tile.columns].contiguous()


def _count(ids: Tensor | None) -> int:
    return 0 if ids is None else ids.shape[1]


def _joined(tops: Tensor, sums: Tensor) -> Tensor:
    """Log-sum-exp (base 2) of parts [P, n]: [n] float64."""
    tops, sums = tops.double(), sums.double()
    top = tops.amax(0).clamp_min(torch.finfo(torch.float64).min)
    return (sums * (tops - top).exp2()).sum(0).log2().add_(top)
