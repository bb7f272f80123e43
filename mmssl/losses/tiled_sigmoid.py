"""Memory-efficient pairwise sigmoid loss, O(G E): the loss and gradients of `sigmoid_loss`, from tiles of its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import check_candidates, over_present
from mmssl.losses.products import Products
from mmssl.losses.tiles import Tile, TiledScores, row_dots, scalar_tensor, tiled_scores


def tiled_sigmoid_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    size: int | None = None,
    products: Products = "float32",
) -> Tensor:
    """`sigmoid_loss` without its logits matrix: three products of [B, E] and [G, E].

    Pairs do not depend on each other, so the forward pass computes the gradients while it has the tile, and the backward pass only
    multiplies them. Under no_grad the forward pass computes the loss alone.

    Args:
        a: [B, E] unit-norm rows of this process; float64, or a smaller type, which is cast to float32 (also under autocast).
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines; a tensor [] where it is learned.
        bias: added to the logits; a tensor [] where it is learned.
        all_b: [G, E] rows of all processes (gathered with gradient); None: one process, all rows are in `b`.
        offset: where this process' rows start among all of them, rank * B.
        present: [G] bool, which samples of all processes take part; None: all.
        ids: [G] or [G, k] integers of all processes; samples that agree in any of the k are no negatives of each other.
        size: rows and columns of a tile; None: chosen for the device. It changes rounding only.
        products: how tiles are multiplied, see `inner_products`.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch, the mean over samples that are present.

    Raises:
        ValueError: shapes, offset, present, ids or size do not match.
    """
    with torch.autocast(a.device.type, enabled=False):
        ids = check_candidates(len(b if all_b is None else all_b), present, ids)
        rows, candidates, scale, size = tiled_scores(a, b, all_b, scale, offset, size, present)
        bias = scalar_tensor("bias", bias, rows.dtype, rows.device)
        learning = torch.is_grad_enabled()
        loss: Tensor = _Sigmoid.apply(rows, candidates, scale, bias, offset, present, ids, size, products, learning)
        return over_present(loss / len(rows), present)


class _Sigmoid(torch.autograd.Function):
    """Sum over all pairs; the forward pass stores the gradients, which the backward pass multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        bias: Tensor,
        offset: int,
        present: Tensor | None,
        ids: Tensor | None,
        size: int,
        products: Products,
        learning: bool,
    ) -> Tensor:
        for_a, for_b, for_scale, for_bias = (learning and needed for needed in ctx.needs_input_grad[:4])
        grad_a = torch.zeros_like(a) if for_a or for_scale else None
        grad_b = torch.zeros_like(b) if for_b else None
        loss, grad_bias = (torch.zeros_like(bias, dtype=torch.float64) for _ in range(2))
        weights = None if present is None else present.to(a.dtype)
        spare = [a.new_empty(min(size, len(a)) * min(size, len(b))) for _ in range(2)]
        for tile in TiledScores(a, b, scale, offset, size, products):
            # A positive is a negative of the other sign; the sign of its gradient is restored below.
            logits = tile.logits.add_(bias)
            tile.diagonal.neg_()
            _leave_out(tile, tile.same_ids(ids))
            loss += _sum(_softplus(logits, spare), tile, weights)
            if not (for_a or for_b or for_scale or for_bias):
                continue
            logits.sigmoid_()
            tile.diagonal.neg_()
            grad_bias += _sum(logits, tile, weights)
            if grad_a is not None:
                tile.add_to_rows(grad_a)
            if grad_b is not None:
                tile.add_to_columns(grad_b)
        grad_scale = row_dots(grad_a, a, size).sum().to(a.dtype) if grad_a is not None and for_scale else None
        if grad_a is not None:
            grad_a.mul_(scale)
        ctx.save_for_backward(
            grad_a if for_a else None,
            grad_b,
            grad_scale if for_scale else None,
            grad_bias.to(bias.dtype) if for_bias else None,
        )
        return loss.to(bias.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would not notice: the incoming gradient has no graph, and the result would count as a constant.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "got create_graph=True, and gradients of tiled_sigmoid_loss cannot be differentiated again; for second "
                "derivatives use sigmoid_loss (in an objective tiles: false)"
            )
        return (*(None if x is None else x * gradient for x in ctx.saved_tensors), None, None, None, None, None, None)


def _softplus(x: Tensor, spare: Sequence[Tensor]) -> Tensor:
    """Softplus, log(1 + exp(x)), of [n, m], precise also near 0; on CPUs it uses the two buffers `spare` [>= n * m].

    On CPUs torch's softplus takes as long as the product for x, because of its log1p. Here, with e = exp(-|x|), u is 1 + e
    rounded and r the rounding error: log(1 + e) = log(u + r) = log(u) + r / u, to first order in r, which is a last digit.
    """
    if x.device.type != "cpu":
        return F.softplus(x, threshold=40)
    e, u = (part[: x.numel()].view_as(x) for part in spare)
    torch.abs(x, out=e).mul_(-1 / math.log(2)).exp2_()
    torch.add(e, 1, out=u).sub_(1)  # u - 1, which is exact
    e.sub_(u)
    e.div_(u.add_(1)).add_(u.log_())
    return e.add_(torch.clamp(x, min=0, out=u))


def _leave_out(tile: Tile, same: Tensor | None) -> None:
    """Set logits of left-out pairs to -inf, where the loss is 0; positives stay."""
    if same is not None:
        positive = tile.diagonal.clone()
        tile.logits.masked_fill_(same, -torch.inf)
        tile.diagonal.copy_(positive)


def _sum(x: Tensor, tile: Tile, weights: Tensor | None) -> Tensor:
    """Weighted sum of the values [n, m] of a tile, [] float64; `weights` [G] are those of samples."""
    if weights is None:
        return x.sum().double()
    return x.mv(weights[tile.columns]).double().dot(weights[tile.positives].double())
