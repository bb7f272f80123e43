"""Memory-efficient symmetric InfoNCE, O(G E): the loss and gradients of `info_nce`, from tiles of its logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.losses.candidates import check_candidates, over_present
from mmssl.losses.products import Products
from mmssl.losses.tiles import Tile, TiledScores, row_dots, tiled_scores

# Logits are made in base 2, because processors raise 2 to a power three times as fast as e.
LN_2 = math.log(2)
# One power is enough for rows and columns while its range stays clear of float32's smallest numbers, 2 ** -126.
SPREAD = 86.0
# Number of strips of rows in a tile; factors are held for one strip at a time.
STRIPS = 8


def tiled_info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
    over_processes: Callable[[Tensor], Tensor] | None = None,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    further_b: Tensor | None = None,
    further_a: Tensor | None = None,
    size: int | None = None,
    products: Products = "float32",
) -> Tensor:
    """`info_nce` without its logits matrix: four products of [B, E] and [G, E], one forward and three backward.

    Both directions share each tile: with s_ij = scale * <a_i, b_j>, the forward pass keeps the log-sum-exp of rows and of columns
    only, and the backward pass computes each tile again. The positive is left out of the sums: log(exp(s_ii) + others) - s_ii is
    softplus(log(others) - s_ii), which stays precise when the loss is near 0.

    Each of several processes computes its [B, G] block of rows only, and an all-reduce of G numbers completes the columns, so `a`
    is not gathered.

    Args:
        a: [B, E] unit-norm rows of this process; float64, or a smaller type, which is cast to float32 (also under autocast).
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines, the inverse of the temperature; a tensor [] where it is learned.
        all_b: [G, E] rows of all processes (gathered with gradient); None: one process, all rows are in `b`.
        offset: where this process' rows start among all of them, rank * B.
        over_processes: log-sum-exp of [G] float64 numbers over processes, element by element, with gradient; needed where
            `all_b` is of several processes.
        present: [G] bool, which samples of all processes take part; None: all.
        ids: [G] or [G, k] integers of all processes; samples that agree in any of the k are no negatives of each other. None:
            every other sample is a negative.
        further_b, further_a: [B] log-sum-exp of the logits of further candidates of a and of b; see `info_nce`.
        size: rows and columns of a tile; None: chosen for the device. It changes rounding only.
        products: how tiles are multiplied, see `inner_products`. With "tf32x3" on CUDA, Triton kernels make the sums of tiles and
            the weights of logits (`fused_tiles`) where Triton is installed.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch, the mean over samples that are present.

    Raises:
        ValueError: shapes, offset, present, ids or size do not match; candidates of other processes without `over_processes`.
    """
    with torch.autocast(a.device.type, enabled=False):
        ids = check_candidates(len(b if all_b is None else all_b), present, ids)
        rows, candidates, scale, size = tiled_scores(a, b, all_b, scale, offset, size, present)
        if over_processes is None and len(candidates) != len(rows):
            raise ValueError(
                f"got {len(candidates)} candidates for {len(rows)} rows and no over_processes, wanted an all-reduce for columns "
                "with rows on other processes; give the log-sum-exp over processes"
            )
        sums: tuple[Tensor, Tensor, Tensor] = _LogSumExp.apply(
            rows, candidates, scale, offset, present, ids, size, products
        )
        by_row, by_column, positive = sums
        if over_processes is not None:
            by_column = over_processes(by_column)
        by_column = by_column[offset : offset + len(rows)]
        by_row = by_row if further_b is None else torch.logaddexp(by_row, further_b.double())
        by_column = by_column if further_a is None else torch.logaddexp(by_column, further_a.double())
        loss = F.softplus(torch.stack([by_row, by_column]) - positive, threshold=40).mean()
        return over_present(loss, present).to(rows.dtype)


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exp of the logits of each row [B] and column [G] without its positive, and the positives [B]; all in float64.

    Vectors are cheap, and a float32 near 100 has an error of 4e-6, which would be the error of every weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        offset: int,
        present: Tensor | None,
        ids: Tensor | None,
        size: int,
        products: Products,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_row = a.new_full((len(a),), -torch.inf, dtype=torch.float64)
        by_column = a.new_full((len(b),), -torch.inf, dtype=torch.float64)
        # Positives stand far above the rest, and take more rounding from a product in float32 than all others together.
        positive = row_dots(a, b[offset : offset + len(a)], size) * scale.double()
        scores = TiledScores(a, b, scale / LN_2, offset, size, products)
        if fuses(a, products):
            from mmssl.losses.fused_tiles import log_sum_exps

            for tile in scores.blank():
                _join(by_row[tile.rows], by_column[tile.columns], *log_sum_exps(tile, present, ids))
        else:
            weights = None if present is None else present.to(a.dtype)
            for tile in scores:
                _add(by_row[tile.rows], by_column[tile.columns], tile, present, weights, tile.same_ids(ids))
        if present is not None:
            by_row.masked_fill_(~present[offset : offset + len(a)], -torch.inf)
            by_column.masked_fill_(~present, -torch.inf)
        ctx.save_for_backward(a, b, scale, by_row, by_column, present, ids)
        ctx.offset, ctx.size, ctx.products = offset, size, products
        return by_row * LN_2, by_column * LN_2, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_row: Tensor, to_column: Tensor, to_positive: Tensor) -> tuple[Tensor | None, ...]:
        a, b, scale, by_row, by_column, present, ids = ctx.saved_tensors
        for_a, for_b, for_scale = ctx.needs_input_grad[:3]
        grad_a = torch.zeros_like(a) if for_a or for_scale else None
        grad_b = torch.zeros_like(b) if for_b else None
        to_positive = to_positive.to(a.dtype)
        with torch.autocast(a.device.type, enabled=False):
            weights = _Weights(by_row, by_column, to_row, to_column, present, ids, a.dtype, fuses(a, ctx.products))
            for tile in TiledScores(a, b, scale / LN_2, ctx.offset, ctx.size, ctx.products):
                weights.replace(tile)
                tile.diagonal.copy_(to_positive[tile.diagonal_rows])
                if grad_a is not None:
                    tile.add_to_rows(grad_a)
                if grad_b is not None:
                    tile.add_to_columns(grad_b)
            # grad_a is so far the gradient of scale * a_i, which gives d s_ij / d scale without another pass.
            grad_scale = row_dots(grad_a, a, ctx.size).sum().to(a.dtype) if grad_a is not None and for_scale else None
            if grad_a is not None:
                grad_a.mul_(scale)
            if grad_b is not None:
                grad_b.mul_(LN_2)
        return grad_a if for_a else None, grad_b, grad_scale, None, None, None, None, None


def fuses(a: Tensor, products: Products) -> bool:
    """Whether Triton kernels work on the tiles of these rows: float32 on CUDA with tf32x3."""
    wanted = a.device.type == "cuda" and a.dtype == torch.float32 and products == "tf32x3"
    return wanted and find_spec("triton") is not None


def _add(
    by_row: Tensor, by_column: Tensor, tile: Tile, present: Tensor | None, weights: Tensor | None, same: Tensor | None
) -> None:
    """Add a tile to the log-sum-exp (base 2) of its rows and columns, in place. The tile is overwritten."""
    logits = tile.logits
    tile.diagonal.zero_()  # positives may be far above the rest, and would widen the range of the power
    low, high = torch.aminmax(logits)
    if logits.device.type == "cpu" and bool(high - low < SPREAD):  # elsewhere the host would wait for the device
        logits.sub_(high).exp2_()
        if same is not None:
            logits.masked_fill_(same, 0)
        tile.diagonal.zero_()
        rows, columns = (x.double().log2_().add_(high) for x in tile.sums(weights))
    else:
        if same is not None:
            logits.masked_fill_(same, -torch.inf)
        tile.hide(present)
        tile.diagonal.fill_(-torch.inf)
        rows, columns = _log_sum_exp(logits, 1), _log_sum_exp(logits, 0)
    _join(by_row, by_column, rows, columns)


def _join(by_row: Tensor, by_column: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add log-sum-exps (base 2) of a tile's rows and columns to those so far, in place."""
    torch.logaddexp2(by_row, rows, out=by_row)
    torch.logaddexp2(by_column, columns, out=by_column)


def _log_sum_exp(logits: Tensor, axis: int) -> Tensor:
    """Log-sum-exp in base 2; the result is float64, with all digits of the sum."""
    top = logits.amax(axis, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return (logits - top).exp2_().sum(axis).double().log2_().add_(top.squeeze(axis))


class _Weights:
    """Turns logits (base 2) into the gradient of the log-sum-exps: to_row_i * softmax_row + to_column_j * softmax_column."""

    def __init__(
        self,
        by_row: Tensor,
        by_column: Tensor,
        to_row: Tensor,
        to_column: Tensor,
        present: Tensor | None,
        ids: Tensor | None,
        dtype: torch.dtype,
        fused: bool,
    ) -> None:
        no_row, no_column = by_row == -torch.inf, by_column == -torch.inf
        top = torch.maximum(by_row.max(), by_column.max()).nan_to_num(neginf=0.0)
        # In a row or column without any sum all entries are left out: any number will do, except NaN.
        by_row, to_row = by_row.masked_fill(no_row, top), to_row.masked_fill(no_row, 0)
        by_column, to_column = by_column.masked_fill(no_column, top), to_column.masked_fill(no_column, 0)
        low = torch.minimum(by_row.min(), by_column.min())
        # Absent samples have logits of 0, whose power must be finite too: it meets zeros in the products.
        self.fused = fused
        self.together = not fused and top.device.type == "cpu" and bool((top - low < SPREAD) & (top > -SPREAD))
        self.present, self.ids = present, ids
        # The shift before the power has the precision of the logits; the factors after it carry the rest.
        self.row_top, self.column_top = ((top if self.together else x).to(dtype) for x in (by_row, by_column))
        self.rows = (to_row * (self.row_top - by_row).exp2()).to(dtype)
        self.columns = (to_column * (self.column_top - by_column).exp2()).to(dtype)

    def replace(self, tile: Tile) -> None:
        """Replace the logits of a tile by their weights, in place. Those of positives may become any number, or NaN."""
        logits, rows, columns = tile.logits, tile.rows, tile.columns
        if self.fused:
            from mmssl.losses.fused_tiles import weigh

            by_row, by_column = (self.row_top[rows], self.rows[rows]), (self.column_top[columns], self.columns[columns])
            weigh(tile, *by_row, *by_column, self.present, self.ids)
            return
        same = tile.same_ids(self.ids)
        if self.together:
            to_columns = self.columns[columns]
            for some, factors in zip(logits.chunk(STRIPS), self.rows[rows].chunk(STRIPS), strict=True):
                some.sub_(self.row_top).exp2_().mul_(factors[:, None] + to_columns)
        else:
            tile.hide(self.present)
            to_columns = (logits - self.column_top[columns]).exp2_().mul_(self.columns[columns])
            logits.sub_(self.row_top[rows, None]).exp2_().mul_(self.rows[rows, None]).add_(to_columns)
        if same is not None:
            logits.masked_fill_(same, 0)
