"""Exact ranks from tiles of the score matrix, which is never in memory as a whole. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.evaluation.tiles import TILE, TilePart, Tiles, exact_products, pad_rows


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right candidates of Q queries, in one direction.

    Attributes:
        positives: [Q] int64, number of right candidates; queries with 0 are left out of every mean.
        ranks: [Q, R] int64, rank among *all* candidates of the best, second best ... right one, 1 is best; NEVER if a query
            has fewer. Column 0 is the rank of the best right candidate.
        best: [Q] float32, score of the best right candidate; -inf without one.
        tied: [Q] bool, whether a wrong candidate has exactly that score.
        found: [Q] int64, the candidate of rank 1, right or wrong.  found_score: [Q] float32, its score.
    """

    positives: Tensor
    ranks: Tensor
    best: Tensor
    tied: Tensor
    found: Tensor
    found_score: Tensor


@dataclass(frozen=True)
class Predictions:
    """Answers of a classifier for N samples.

    Attributes:
        ranks: [N] int64, rank of the true class, 1 is best.
        tied: [N] bool, whether another class ties with the true one.
        predicted: [N] int64, the class of rank 1.
        scores: [N, 2], score of the predicted class and of the true one.
        probabilities: [N, 2], alike; None: these scores give no probabilities.
    """

    ranks: Tensor
    tied: Tensor
    predicted: Tensor
    scores: Tensor
    probabilities: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Predictions:
        """The same with every tensor changed."""
        chances = self.probabilities
        return Predictions(
            change(self.ranks),
            change(self.tied),
            change(self.predicted),
            change(self.scores),
            None if chances is None else change(chances),
        )

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """Those of all samples, from those of some each; with probabilities where all have them."""
        chances = [part.probabilities for part in parts if part.probabilities is not None]
        return Predictions(
            torch.cat([part.ranks for part in parts]),
            torch.cat([part.tied for part in parts]),
            torch.cat([part.predicted for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat(chances) if len(chances) == len(parts) else None,
        )


NEVER = torch.iinfo(torch.int64).max
"""Rank of a missing candidate."""


@torch.no_grad()
def class_ranks(embeddings: Tensor, classifier: Tensor, labels: Tensor, scale: float | None = None) -> Predictions:
    """Rank of the true class of each sample, and the predicted class.

    rank = 1 + #(score > true score) + #(score == true score of a lower class number).

    Args:
        embeddings: [N, E] float32.
        classifier: [K, E] float32.
        labels: [N] int64, in 0 ... K-1.
        scale: see `ranks_of_classes`.
    """
    parts = []
    size = max(1, 2**24 // len(classifier))
    classes, columns = pad_rows(classifier, 64)
    for rows, own in zip(torch.split(embeddings, size), torch.split(labels, size), strict=True):
        with exact_products():
            parts.append(ranks_of_classes((rows @ classes.T)[:, :columns], own, scale))
    return Predictions.joined(parts)


def ranks_of_classes(scores: Tensor, labels: Tensor, scale: float | None = None) -> Predictions:
    """`class_ranks` of scores [N, K] that are computed already.

    Args:
        scores: [N, K]. labels: [N] int64.
        scale: probabilities are the softmax over classes of the scores times this; None: there are none.
    """
    true = scores.gather(1, labels[:, None])
    equal = scores == true
    before = torch.arange(scores.shape[1], device=labels.device) < labels[:, None]
    ranks = 1 + (scores > true).sum(1) + (equal & before).sum(1)
    predicted = scores.argmax(1)  # the first of equals, as the rule for ties says
    both = scores.gather(1, torch.stack([predicted, labels], 1))
    chances = None if scale is None else (scale * both - (scale * scores).logsumexp(1, keepdim=True)).exp()
    return Predictions(ranks, equal.sum(1) > 1, predicted, both, chances)


@torch.no_grad()
def pair_ranks(
    a: Tensor, owner_a: Tensor, b: Tensor, owner_b: Tensor, *, depth: int = 10, tile: tuple[int, int] | None = None
) -> tuple[Ranks, Ranks]:
    """Retrieval ranks of both directions, a -> b and b -> a, from one matrix product for each tile.

    A candidate is right when it has the query's owner. The slow form, for one query q and its right candidates P sorted by
    (score descending, position), is: rank of P[r] = 1 + r + #(wrong c: score(c) > score(P[r]) or equal and c before P[r]).

    Owners ascend, so right candidates lie near the diagonal, and a part off the diagonal has only wrong candidates that all come
    before, or all after, the right ones: one comparison counts them, ties included. The tiles of the diagonal are scored twice,
    with the same operands and shapes, so that a right candidate's score is bit-equal in both passes; and their rows are taken in
    strips, so that few of their candidates are near a right one.

    Args:
        a: [Na, E] float32.
        owner_a: [Na] int64, ascending: which sample each row belongs to.
        b: [Nb, E] float32.
        owner_b: [Nb] int64, ascending.
        depth: R, number of right candidates of a query that are ranked: recall@k needs the k best.
        tile: rows and columns of a tile; None: chosen for the device.

    Raises:
        ValueError: owners do not ascend.
    """
    for owner in (owner_a, owner_b):
        if (owner.diff() < 0).any():
            raise ValueError("got owners out of order, wanted them ascending; sort the rows by sample")
    sweep = _Sweep(Tiles(a, owner_a, b, owner_b, tile), depth)
    with exact_products():
        for rows, columns, parts in sweep.tiles:
            if any(part.side == 0 for part in parts):
                sweep.find(rows, columns, parts)
        sweep.forward.settle()
        sweep.backward.settle()
        for rows, columns, parts in sweep.tiles:
            sweep.count(rows, columns, parts)
    return sweep.forward.result(), sweep.backward.result()


@torch.no_grad()
def log_sums(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the products a b^T / temperature over each row and over each column, from tiles of the matrix.

    Args:
        a: [Na, E] float32. b: [Nb, E] float32.
        temperature: of the products.

    Returns:
        rows [Na], columns [Nb].
    """
    rows = a.new_full((len(a),), -torch.inf)
    columns = b.new_full((len(b),), -torch.inf)
    height, width = TILE.get(a.device.type, TILE["cpu"])
    for top in range(0, len(a), height):
        for left in range(0, len(b), width):
            with exact_products():
                scores = a[top : top + height] @ b[left : left + width].T / temperature
            for sums, place, dim in ((rows, slice(top, top + height), 1), (columns, slice(left, left + width), 0)):
                sums[place] = torch.logaddexp(sums[place], scores.logsumexp(dim))
    return rows, columns


def choice_accuracy(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy of choices among candidates of one sample, with ties as chance, and whether a wrong candidate ties.

    Such candidates have no order in the data: if t are equally good and one of them is right, the choice scores 1 / t. So a model
    that does not distinguish them scores chance, 1 / C.

    Args:
        scores: [n, C], the right candidate first.

    Returns:
        earned [n] float64, tied [n] bool.
    """
    best = scores == scores.amax(1, keepdim=True)
    return best[:, 0].double() / best.sum(1), (scores[:, 1:] == scores[:, :1]).any(1)


class _Direction:
    """Queries of one direction: scores of their right candidates, then numbers of wrong ones above each."""

    def __init__(self, owner: Tensor, candidates: Tensor, depth: int) -> None:
        self.first = torch.searchsorted(candidates, owner)
        self.positives = torch.searchsorted(candidates, owner, right=True) - self.first
        self.depth = depth
        slots = max(1, int(self.positives.max()))
        self.scores = torch.full((len(owner), slots), -torch.inf, device=owner.device)
        self.order = self.above = self.positives.new_zeros(len(owner), 0)
        self.tied = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
        self.found = torch.full_like(self.first, NEVER)
        self.found_score = torch.full((len(owner),), -torch.inf, device=owner.device)

    def settle(self) -> None:
        """After all right candidates are scored: keep the best ones, best first, ties in order of position."""
        self.scores, slot = self.scores.sort(dim=1, descending=True, stable=True)
        self.scores, slot = self.scores[:, : self.depth].contiguous(), slot[:, : self.depth]
        self.order = self.first[:, None] + slot
        missing = torch.arange(slot.shape[1], device=slot.device) >= self.positives[:, None]
        # No score is above +inf, so a slot without a candidate counts nothing.
        self.scores[missing] = torch.inf
        self.above = torch.zeros_like(slot)

    def compare_best(self, queries: slice, start: int, scores: Tensor, scratch: Tensor) -> None:
        """Keep the best candidate, of equal ones the first, of those so far and of a part [queries, candidates] from `start` on."""
        best, known, place = scores.amax(1), self.found_score[queries], self.found[queries]
        better = (best > known) | ((best == known) & (start < place))
        if not better.any():
            return
        # The first of equals has the largest of falling numbers: three passes over the part, which take a third of an argmax.
        width = scores.shape[1]
        torch.eq(scores, best[:, None], out=scratch)
        scratch *= torch.arange(width, 0, -1, dtype=scratch.dtype, device=scratch.device)
        place.copy_(torch.where(better, start + width - scratch.amax(1).long(), place))
        known.copy_(torch.maximum(best, known))

    def count_wrong(self, queries: slice, scores: Tensor, scratch: Tensor, *, before: bool) -> None:
        """Count wrong candidates in a tile [queries, candidates] with wrong ones only, all before or all after the right ones."""
        compare = torch.ge if before else torch.gt
        for slot in range(self.scores.shape[1]):
            compare(scores, self.scores[queries, slot, None], out=scratch)
            self.above[queries, slot] += scratch.sum(1).long()
        torch.eq(scores, self.scores[queries, 0, None], out=scratch)
        self.tied[queries] |= scratch.sum(1) > 0

    def count_mixed(self, queries: slice, start: int, scores: Tensor, right: Tensor) -> None:
        """Count wrong candidates in a tile with right ones too; `start` is the position of its first candidate."""
        position = torch.arange(start, start + scores.shape[1], device=scores.device)
        for slot in range(self.scores.shape[1]):
            own = self.scores[queries, slot, None]
            equal = (scores == own) & ~right
            above = ((scores > own) & ~right) | (equal & (position < self.order[queries, slot, None]))
            self.above[queries, slot] += above.sum(1)
            if slot == 0:
                self.tied[queries] |= equal.any(1)

    def result(self) -> Ranks:
        """The ranks, after every tile has been counted."""
        slot = torch.arange(self.above.shape[1], device=self.above.device)
        ranks = torch.where(slot < self.positives[:, None], self.above + slot + 1, NEVER)
        best = torch.where(self.positives > 0, self.scores[:, 0], -torch.inf)
        return Ranks(self.positives, ranks, best, self.tied & (self.positives > 0), self.found, self.found_score)


class _Sweep:
    """A pass over all tiles; `forward` has the rows of a as queries, `backward` those of b."""

    def __init__(self, tiles: Tiles, depth: int) -> None:
        self.tiles = tiles
        self.scratch = torch.empty_like(tiles.out).view(-1)
        self.forward = _Direction(tiles.owner_a, tiles.owner_b, depth)
        self.backward = _Direction(tiles.owner_b, tiles.owner_a, depth)

    def find(self, rows: slice, columns: slice, parts: list[TilePart]) -> None:
        """Store the scores of the right candidates of a tile, for both directions."""
        for part, scores in self.tiles.scores(rows, columns, parts):
            if part.side == 0:
                row, column = self.tiles.right(part).nonzero(as_tuple=True)
                values = scores[row, column]
                row, column = row + part.rows.start, column + part.columns.start
                self.forward.scores[row, column - self.forward.first[row]] = values
                self.backward.scores[column, row - self.backward.first[column]] = values

    def count(self, rows: slice, columns: slice, parts: list[TilePart]) -> None:
        """Count the wrong candidates of a tile for both directions."""
        for part, scores in self.tiles.scores(rows, columns, parts):
            # A comparison written as float32 and summed is exact below 2**24, and faster than a sum of booleans.
            scratch = self.scratch[: scores.numel()].view(scores.shape)
            self.forward.compare_best(part.rows, part.columns.start, scores, scratch)
            self.backward.compare_best(part.columns, part.rows.start, scores.T, scratch.T)
            if part.side == 0:
                right = self.tiles.right(part)
                self.forward.count_mixed(part.rows, part.columns.start, scores, right)
                self.backward.count_mixed(part.columns, part.rows.start, scores.T, right.T)
                continue
            self.forward.count_wrong(part.rows, scores, scratch, before=part.side < 0)
            self.backward.count_wrong(part.columns, scores.T, scratch.T, before=part.side > 0)
