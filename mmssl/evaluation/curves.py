"""Areas below precision-recall and ROC curves, of many rows of scores at once. Pure functions of tensors.

Q: rows, such as classes; N: columns, such as samples. Equal scores count together, as in scikit-learn: a row of equal scores has
the average precision of chance, the share of right ones, and the AUROC 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tie_bounds(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """First and last column of the group of equal values that each value of sorted rows [Q, N] is in: [Q, N] int64 each."""
    n = ordered.shape[1]
    place = torch.arange(n, device=ordered.device).expand_as(ordered)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = starts.roll(-1, 1)
    ends[:, -1] = True
    begin = place.where(starts, 0).cummax(1).values
    end = place.where(ends, n).flip(1).cummin(1).values.flip(1)
    return begin, end


class PrecisionRecall:
    """Average precision of rows of scores, for any weights of the columns: they are sorted once.

    Args:
        scores: [Q, N] float32.
        right: [Q, N] bool.
    """

    def __init__(self, scores: Tensor, right: Tensor) -> None:
        ordered, self._order = scores.sort(dim=1, descending=True, stable=True)
        self._right = right.gather(1, self._order)
        self._end = tie_bounds(ordered)[1]

    def average_precision(self, weights: Tensor | None = None) -> Tensor:
        """Sum over thresholds of precision times the gain of recall, [Q] float64; NaN for a row without a right column.

        Args:
            weights: [N] float64, how often each column counts, as in a bootstrap; None: once.
        """
        weight = torch.ones_like(self._order, dtype=torch.float64) if weights is None else weights[self._order]
        hit = weight * self._right
        precision = hit.cumsum(1).gather(1, self._end) / weight.cumsum(1).gather(1, self._end).clamp_min(1e-300)
        return (precision * hit).sum(1) / hit.sum(1)


def auroc(scores: Tensor, right: Tensor) -> Tensor:
    """Area below the ROC curve of each row, [Q] float64: the chance that a right column scores higher than a wrong one.

    NaN for a row without right ones, or without wrong ones.

    Args:
        scores: [Q, N] float32.
        right: [Q, N] bool.
    """
    ordered, order = scores.sort(dim=1)
    begin, end = tie_bounds(ordered)
    hit = right.gather(1, order)
    positives = hit.sum(1).double()
    ranks = ((begin + end).double() / 2 + 1) * hit
    above = ranks.sum(1) - positives * (positives + 1) / 2
    return above / (positives * (scores.shape[1] - positives))
