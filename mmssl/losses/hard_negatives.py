"""Hard negatives from tiles: further candidates of InfoNCE by their log-sum-exp, and further negative pairs of the sigmoid loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.losses.tiles import tile_size

NOTHING = -1e30
"""Logit of a left-out candidate: its power is 0, and unlike that of -inf, its difference to itself is a number."""


@dataclass(frozen=True)
class HardNegatives:
    """M candidates that are negatives of all rows, such as false captions of all samples of the batch (NegCLIP, arXiv:2210.01936).

    `info_nce` takes their log-sum-exp as `further_b` (rows a) or `further_a` (rows b). Slow loop of its loss with hard negatives n
    of b, over one process; a candidate whose id is that of the row's own b says the truth, and is left out::

        def loop(a, b, scale, present, ids, n, usable, n_ids):
            there = [i for i in range(len(a)) if present[i]]
            loss = 0.0
            for i in there:
                hard = [j for j in range(len(n)) if usable[j] and n_ids[j] != ids[i]]
                a_to_b = sum(exp(scale * (dot(a[i], b[j]) - dot(a[i], b[i]))) for j in there)
                a_to_b += sum(exp(scale * (dot(a[i], n[j]) - dot(a[i], b[i]))) for j in hard)
                b_to_a = sum(exp(scale * (dot(b[i], a[j]) - dot(b[i], a[i]))) for j in there)
                loss += (log(a_to_b) + log(b_to_a)) / 2
            return loss / max(1, len(there))

    Attributes:
        rows: [B, E] unit-norm rows of this process.
        candidates: [M, E] unit-norm, of all processes, with gradient.
        present: [B] bool, which rows take part.
        usable: [M] bool, which candidates take part.
        row_ids: [B] int64, ids of the rows' positives; None: nothing is left out.
        ids: [M] int64, ids of the candidates.
    """

    rows: Tensor
    candidates: Tensor
    present: Tensor
    usable: Tensor
    row_ids: Tensor | None = None
    ids: Tensor | None = None

    def log_sum_exp(self, scale: Tensor | float, size: int | None = None) -> Tensor:
        """Log-sum-exp of the logits scale * <row, candidate> of each row, [B]; `NOTHING` or less where all are left out.

        Tiles are computed again in the backward pass, so memory is linear in B + M.

        Args:
            scale: multiplier of the cosines.
            size: rows and columns of a tile; None: chosen for the device. It changes rounding only.
        """
        scale = torch.as_tensor(scale, dtype=self.rows.dtype, device=self.rows.device)
        found: Tensor = _LogSumExp.apply(self.rows, self.candidates, scale, self, size or tile_size(self.rows.device))
        return found

    def sigmoid_terms(self, scale: Tensor | float, bias: Tensor | float, size: int | None = None) -> Tensor:
        """Sum over the candidates of log(1 + exp(scale * <row, candidate> + bias)) of each row, [B]: further negative pairs.

        The sigmoid loss (arXiv:2303.15343, algorithm 1) counts pairs one by one, so its loss with hard negatives is `sigmoid_loss`
        plus the mean of these sums over the rows that are present. Slow loop with hard negatives n of b, over one process::

            def loop(a, b, scale, bias, present, ids, n, usable, n_ids):
                there = [i for i in range(len(a)) if present[i]]
                loss = 0.0
                for i in there:
                    for j in there:
                        logit = scale * dot(a[i], b[j]) + bias
                        loss += log(1 + exp(-logit if i == j else logit))
                    for j in range(len(n)):
                        if usable[j] and n_ids[j] != ids[i]:
                            loss += log(1 + exp(scale * dot(a[i], n[j]) + bias))
                return loss / max(1, len(there))

        Tiles are computed again in the backward pass, so memory is linear in B + M.

        Args:
            scale: multiplier of the cosines. bias: added to the logits.
            size: rows and columns of a tile; None: chosen for the device. It changes rounding only.
        """
        scale, bias = (torch.as_tensor(x, dtype=self.rows.dtype, device=self.rows.device) for x in (scale, bias))
        size = size or tile_size(self.rows.device)
        found: Tensor = _SoftplusSum.apply(self.rows, self.candidates, scale, bias, self, size)
        return found

    def detach(self) -> HardNegatives:
        """The same without a graph."""
        return replace(self, rows=self.rows.detach(), candidates=self.candidates.detach())

    @torch.no_grad()
    def counts(self) -> Tensor:
        """Number of candidates of each row, [B] float64."""
        size = tile_size(self.rows.device)
        strips = [slice(top, top + size) for top in range(0, len(self.rows), size)]
        return torch.cat([(~self.left_out(rows, slice(None))).sum(1) for rows in strips]).double()

    def left_out(self, rows: slice, columns: slice) -> Tensor:
        """Mask of the candidates that are none of a row, for a tile of rows and columns: [n, m] bool."""
        out = ~(self.present[rows, None] & self.usable[columns])
        if self.row_ids is None or self.ids is None:
            return out
        return out | (self.row_ids[rows, None] == self.ids[columns])


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exp of each row [B] from rows [B, E], candidates [M, E] and scale []."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, candidates: Tensor, scale: Tensor, negatives: HardNegatives, size: int
    ) -> Tensor:
        found = rows.new_full((len(rows),), NOTHING)
        for row, _, logits in _tiles(rows, candidates, scale, negatives, size):
            torch.logaddexp(found[row], logits.logsumexp(1), out=found[row])
        ctx.save_for_backward(rows, candidates, scale, found)
        ctx.masks, ctx.size = (negatives.present, negatives.usable, negatives.row_ids, negatives.ids), size
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, candidates, scale, found = ctx.saved_tensors
        negatives = HardNegatives(rows, candidates, *ctx.masks)
        to_rows, to_candidates = torch.zeros_like(rows), torch.zeros_like(candidates)
        with torch.autocast(rows.device.type, enabled=False):
            for row, column, logits in _tiles(rows, candidates, scale, negatives, ctx.size):
                # Where all are left out, their share of nothing must be 0, too.
                shares = (logits - found[row, None]).exp_() * (logits > NOTHING) * gradient[row, None]
                to_rows[row] += shares @ candidates[column]
                to_candidates[column] += shares.T @ rows[row]
        return to_rows * scale, to_candidates * scale, (to_rows * rows).sum(), None, None


class _SoftplusSum(torch.autograd.Function):
    """Sum of softplus(logit) of each row [B] from rows [B, E], candidates [M, E], scale [] and bias []."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor, negatives: HardNegatives, size: int
    ) -> Tensor:
        found = rows.new_zeros(len(rows))
        for row, _, logits in _tiles(rows, candidates, scale, negatives, size):
            found[row] += F.softplus(logits + bias, threshold=40).sum(1)
        ctx.save_for_backward(rows, candidates, scale, bias)
        ctx.masks, ctx.size = (negatives.present, negatives.usable, negatives.row_ids, negatives.ids), size
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, candidates, scale, bias = ctx.saved_tensors
        negatives = HardNegatives(rows, candidates, *ctx.masks)
        to_rows, to_candidates, to_bias = torch.zeros_like(rows), torch.zeros_like(candidates), torch.zeros_like(bias)
        with torch.autocast(rows.device.type, enabled=False):
            for row, column, logits in _tiles(rows, candidates, scale, negatives, ctx.size):
                shares = (logits + bias).sigmoid_() * gradient[row, None]
                to_rows[row] += shares @ candidates[column]
                to_candidates[column] += shares.T @ rows[row]
                to_bias += shares.sum()
        return to_rows * scale, to_candidates * scale, (to_rows * rows).sum(), to_bias, None, None


def _tiles(
    rows: Tensor, candidates: Tensor, scale: Tensor, negatives: HardNegatives, size: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    for top in range(0, len(rows), size):
        for left in range(0, len(candidates), size):
            row, column = slice(top, top + size), slice(left, left + size)
            logits = scale * rows[row] @ candidates[column].T
            yield row, column, logits.masked_fill_(negatives.left_out(row, column), NOTHING)
