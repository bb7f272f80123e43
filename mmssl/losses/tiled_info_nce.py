"""Symmetric InfoNCE in O(G E) memory: the loss and gradients of `info_nce`, from tiles of its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.losses.tiles import Block, Tile, block, dot

# One exponential serves rows and columns while what it spans stays clear of float32's smallest numbers, exp(-87).
SPREAD = 60.0


def tiled_info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
    over_processes: Callable[[Tensor], Tensor] | None = None,
    ids: Tensor | None = None,
    all_ids: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """`info_nce` without its matrix: four products of [B, E] and [G, E] in all, one forward and three backward.

    Both directions share each tile: with s_ij = scale * <a_i, b_j>, the forward pass keeps the log-sum-exp of rows and of columns
    only, and the backward pass makes each tile anew. The positive is left out of the sums: log(exp(s_ii) + others) - s_ii is
    softplus(log(others) - s_ii), which keeps its digits when the batch is all but solved.

    Slow loop, over the rows of one process that sees them all, where samples of equal ids are no negatives of each other::

        def loop(a, b, scale, ids):
            G, loss = len(a), 0.0
            for i in range(G):
                others = [j for j in range(G) if j == i or ids[j] != ids[i]]
                a_to_b = sum(exp(scale * (dot(a[i], b[j]) - dot(a[i], b[i]))) for j in others)
                b_to_a = sum(exp(scale * (dot(b[i], a[j]) - dot(b[i], a[i]))) for j in others)
                loss += (log(a_to_b) + log(b_to_a)) / 2
            return loss / G

    Among several processes each makes its [B, G] block of rows only, and columns are finished by exchanging G numbers: so `a`
    need not be gathered.

    Args:
        a: [B, E] unit-norm rows of this process; float64, or anything less, which is taken as float32 whatever the autocast.
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines, the inverse of the temperature; a tensor [] where it is learned.
        all_b: [G, E] rows of all processes (gathered with gradient); None: `b` is all there is.
        offset: where this process' rows start among all of them, rank * B.
        over_processes: log-sum-exp of [G] float64 numbers over processes, element by element, with gradient; needed where
            `all_b` is of several processes.
        ids: [B] integers; pairs of equal ids are left out, but for the positive. None: every other sample is a negative.
        all_ids: [G] likewise, of all processes; None: `ids`.
        size: edge of a tile; None: one that suits the device. It moves rounding only.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch.

    Raises:
        ValueError: shapes, offset, ids or size do not fit; candidates of other processes without `over_processes`.
    """
    with torch.autocast(a.device.type, enabled=False):
        rows, candidates, scale, size = block(a, b, all_b, scale, offset, size)
        all_ids = ids if all_ids is None else all_ids
        _check_ids(ids, all_ids, len(rows), len(candidates))
        if over_processes is None and len(candidates) != len(rows):
            raise ValueError(
                f"got {len(candidates)} candidates for {len(rows)} rows and no over_processes, wanted the way to finish columns "
                "whose other rows are elsewhere: give the log-sum-exp over processes"
            )
        sums: tuple[Tensor, Tensor, Tensor] = _LogSumExp.apply(rows, candidates, scale, offset, ids, all_ids, size)
        by_row, by_column, positive = sums
        if over_processes is not None:
            by_column = over_processes(by_column)
        by_column = by_column[offset : offset + len(rows)]
        loss = F.softplus(torch.stack([by_row, by_column]) - positive, threshold=40).mean()
        return loss.to(rows.dtype)


def _check_ids(ids: Tensor | None, all_ids: Tensor | None, rows: int, candidates: int) -> None:
    if (ids is None) != (all_ids is None):
        raise ValueError("got ids of all rows and none of this process' own, wanted both or none")
    if ids is None or all_ids is None:
        return
    if ids.shape != (rows,) or all_ids.shape != (candidates,):
        raise ValueError(
            f"got ids {tuple(ids.shape)} and all_ids {tuple(all_ids.shape)}, wanted [{rows}] and [{candidates}]: one for each row"
        )
    if ids.is_floating_point() or all_ids.is_floating_point():
        raise ValueError(f"got ids of {ids.dtype} and {all_ids.dtype}, wanted integers: they are compared for equality")


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exp of the logits of each row [B] and column [G] but its positive, and the positives [B]; all in float64.

    Vectors are cheap, and a float32 near 100 is known to 4e-6 only, which would be the error of every weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        offset: int,
        ids: Tensor | None,
        all_ids: Tensor | None,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_row = a.new_full((len(a),), -torch.inf, dtype=torch.float64)
        by_column = a.new_full((len(b),), -torch.inf, dtype=torch.float64)
        positive = torch.empty_like(by_row)
        for tile in Block(a, b, scale, offset, size):
            positive[tile.diagonal_rows] = tile.diagonal.double()
            _add(by_row[tile.rows], by_column[tile.columns], tile, tile.same(ids, all_ids))
        ctx.save_for_backward(a, b, scale, by_row, by_column, ids, all_ids)
        ctx.offset, ctx.size = offset, size
        return by_row, by_column, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_row: Tensor, to_column: Tensor, to_positive: Tensor) -> tuple[Tensor | None, ...]:
        a, b, scale, by_row, by_column, ids, all_ids = ctx.saved_tensors
        for_a, for_b, for_scale = ctx.needs_input_grad[:3]
        grad_a = torch.zeros_like(a) if for_a or for_scale else None
        grad_b = torch.zeros_like(b) if for_b else None
        to_positive = to_positive.to(a.dtype)
        with torch.autocast(a.device.type, enabled=False):
            weights = _Weights(by_row, by_column, to_row, to_column, a.dtype)
            for tile in Block(a, b, scale, ctx.offset, ctx.size):
                same = tile.same(ids, all_ids)
                weights.replace(tile.logits, tile.rows, tile.columns)
                if same is not None:
                    tile.logits.masked_fill_(same, 0)
                tile.diagonal.copy_(to_positive[tile.diagonal_rows])
                if grad_a is not None:
                    grad_a[tile.rows].addmm_(tile.logits, tile.candidates)
                if grad_b is not None:
                    grad_b[tile.columns].addmm_(tile.logits.T, tile.scaled)
            # grad_a is of scale * a_i so far: with it d s_ij / d scale needs no pass of its own.
            grad_scale = dot(grad_a, a, ctx.size) if grad_a is not None and for_scale else None
            if grad_a is not None:
                grad_a.mul_(scale)
        return grad_a if for_a else None, grad_b, grad_scale, None, None, None, None


def _add(by_row: Tensor, by_column: Tensor, tile: Tile, same: Tensor | None) -> None:
    """Add a tile to the log-sum-exp of its rows and columns, in place. The tile is used up."""
    logits = tile.logits
    tile.diagonal.zero_()  # positives may be far above the rest, and would widen what one exponential has to span
    low, high = torch.aminmax(logits)
    if bool(high - low < SPREAD):
        logits.sub_(high).exp_()
        if same is not None:
            logits.masked_fill_(same, 0)
        tile.diagonal.zero_()
        rows, columns = (logits.sum(axis).double().log_().add_(high) for axis in (1, 0))
    else:
        if same is not None:
            logits.masked_fill_(same, -torch.inf)
        tile.diagonal.fill_(-torch.inf)
        rows, columns = _log_sum_exp(logits, 1), _log_sum_exp(logits, 0)
    torch.logaddexp(by_row, rows, out=by_row)
    torch.logaddexp(by_column, columns, out=by_column)


def _log_sum_exp(logits: Tensor, axis: int) -> Tensor:
    """As torch's, but the result is a float64 with all digits of the sum."""
    top = logits.amax(axis, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return (logits - top).exp_().sum(axis).double().log_().add_(top.squeeze(axis))


class _Weights:
    """Turns logits into the gradient of the log-sum-exps: to_row_i * softmax_row + to_column_j * softmax_column."""

    def __init__(
        self, by_row: Tensor, by_column: Tensor, to_row: Tensor, to_column: Tensor, dtype: torch.dtype
    ) -> None:
        top = torch.maximum(by_row.max(), by_column.max())
        # A row or column without any sum has left out all its entries: any number serves.
        by_row = by_row.masked_fill(by_row == -torch.inf, top)
        by_column = by_column.masked_fill(by_column == -torch.inf, top)
        self.together = bool(top - torch.minimum(by_row.min(), by_column.min()) < SPREAD)
        # What is taken off before the exponential has the digits of the logits; the factors after it carry the rest.
        self.row_top, self.column_top = ((top if self.together else x).to(dtype) for x in (by_row, by_column))
        self.rows = (to_row * (self.row_top - by_row).exp()).to(dtype)
        self.columns = (to_column * (self.column_top - by_column).exp()).to(dtype)

    def replace(self, logits: Tensor, rows: slice, columns: slice) -> None:
        """In place. Entries that are left out become any number, or none."""
        if self.together:
            logits.sub_(self.row_top).exp_().mul_(self.rows[rows, None] + self.columns[columns])
        else:
            to_columns = (logits - self.column_top[columns]).exp_().mul_(self.columns[columns])
            logits.sub_(self.row_top[rows, None]).exp_().mul_(self.rows[rows, None]).add_(to_columns)
