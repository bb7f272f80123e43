"""Pairwise sigmoid loss in O(G E) memory: the loss and gradients of `sigmoid_loss`, from tiles of its logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.losses.tiles import Block, block, dot


def tiled_sigmoid_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
    size: int | None = None,
) -> Tensor:
    """`sigmoid_loss` without its matrix: three products of [B, E] and [G, E] in all.

    Pairs do not depend on each other, so gradients are made in the forward pass, while the tile is there, and the backward pass
    only multiplies them. Without gradient the forward pass makes the loss alone.

    Args:
        a: [B, E] unit-norm rows of this process; float64, or anything less, which is taken as float32 whatever the autocast.
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines; a tensor [] where it is learned.
        bias: added to the logits, likewise.
        all_b: [G, E] rows of all processes (gathered with gradient); None: `b` is all there is.
        offset: where this process' rows start among all of them, rank * B.
        size: edge of a tile; None: one that suits the device. It moves rounding only.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch.

    Raises:
        ValueError: shapes, offset or size do not fit.
    """
    with torch.autocast(a.device.type, enabled=False):
        rows, candidates, scale, size = block(a, b, all_b, scale, offset, size)
        bias = torch.as_tensor(bias, dtype=rows.dtype, device=rows.device)
        loss: Tensor = _Sigmoid.apply(rows, candidates, scale, bias, offset, size, torch.is_grad_enabled())
        return loss / len(rows)


class _Sigmoid(torch.autograd.Function):
    """The sum over all pairs, with the gradients that the backward pass will multiply."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, size: int, learning: bool
    ) -> Tensor:
        for_a, for_b, for_scale, for_bias = (learning and needed for needed in ctx.needs_input_grad[:4])
        grad_a = torch.zeros_like(a) if for_a or for_scale else None
        grad_b = torch.zeros_like(b) if for_b else None
        loss, grad_bias = torch.zeros_like(bias), torch.zeros_like(bias)
        for tile in Block(a, b, scale, offset, size):
            # A positive is a negative of the other sign; its gradient turns back below.
            logits = tile.logits.add_(bias)
            tile.diagonal.neg_()
            # Beyond 40 the softplus of x is x, to the last digit of float64; exp(40) is far from overflow.
            loss += F.softplus(logits, threshold=40).sum()
            if not (for_a or for_b or for_scale or for_bias):
                continue
            logits.sigmoid_()
            tile.diagonal.neg_()
            grad_bias += logits.sum()
            if grad_a is not None:
                grad_a[tile.rows].addmm_(logits, tile.candidates)
            if grad_b is not None:
                grad_b[tile.columns].addmm_(logits.T, tile.scaled)
        grad_scale = dot(grad_a, a, size) if grad_a is not None and for_scale else None
        if grad_a is not None:
            grad_a.mul_(scale)
        ctx.save_for_backward(
            grad_a if for_a else None, grad_b, grad_scale if for_scale else None, grad_bias if for_bias else None
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if x is None else x * gradient for x in ctx.saved_tensors), None, None, None)
