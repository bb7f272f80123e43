"""Areas below precision-recall and ROC curves, of many rows of scores at once. Pure functions of tensors.

Q: rows, such as classes; N: columns, such as samples. Equal scores count together, as in scikit-learn: a row of equal scores has
the average precision of chance, the share of right ones, and the AUROC 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmssl.evaluation.statistics import Z95, wilson


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
    """Average precision of rows of scores, and in draws of the columns: they are sorted once.

    Args:
        scores: [Q, N] float32.
        right: [Q, N] bool.
    """

    def __init__(self, scores: Tensor, right: Tensor) -> None:
        ordered, self._order = scores.sort(dim=1, descending=True, stable=True)
        self._right = right.gather(1, self._order)
        self._end = tie_bounds(ordered)[1]

    def average_precision(self) -> Tensor:
        """Sum over thresholds of precision times the gain of recall, [Q] float64; NaN for a row without a right column."""
        hit = self._right.double()
        precision = hit.cumsum(1).gather(1, self._end) / (self._end + 1)
        return (precision * hit).sum(1) / hit.sum(1)

    def resampled(self, draws: Tensor) -> Tensor:
        """Average precision in draws of the columns, as of a bootstrap: [Q, R] float64; NaN for a row without a right column.

        Args:
            draws: [N, R] float32, how often each column is in each of R draws; sums of a draw are below 2^24, and so exact.
        """
        found = []
        for order, right, end in zip(self._order, self._right, self._end, strict=True):
            thresholds = end[right].unique()
            # Columns up to each threshold, from those between it and the one before.
            part = torch.empty_like(order)
            part[order] = torch.searchsorted(thresholds, torch.arange(len(order), device=order.device))
            among = draws.new_zeros(len(thresholds) + 1, draws.shape[1])
            claimed = among.index_add(0, part, draws)[:-1].double().cumsum(0)
            hit = among[:-1].index_add(0, part[order[right]], draws[order[right]]).double()
            precision = hit.cumsum(0) / claimed.clamp_min(1)
            found.append((precision * hit).sum(0) / hit.sum(0))
        return torch.stack(found)


def auroc(scores: Tensor, right: Tensor) -> Tensor:
    """Area below the ROC curve of each row, [Q] float64: the chance that a right column scores higher than a wrong one.

    NaN for a row without right ones, or without wrong ones.

    Args:
        scores: [Q, N] float32.
        right: [Q, N] bool.
    """
    return auroc_influence(scores, right)[0]


def auroc_influence(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """`auroc`, and how much it owes to each column: [Q] and [Q, N] float64, NaN in a row without right ones or wrong ones.

    The influence of a right column is (share of wrong ones below it - area) / number of right ones, and alike for a wrong one
    (DeLong et al. 1988). Influences of a row sum to 0, and the sum of their squares estimates the variance of the area. Rows and
    columns may be summed first: rows, where the area is a mean over rows of the same samples; columns, where several are of one
    sample, as Obuchowski 1997 does.
    """
    ordered, order = scores.sort(dim=1)
    begin, end = tie_bounds(ordered)
    hit = right.gather(1, order).double()
    positives = hit.sum(1, keepdim=True)
    negatives = scores.shape[1] - positives
    # Right ones before each column, those of equal score half; and the wrong ones.
    before = torch.cat([torch.zeros_like(positives), hit.cumsum(1)], 1)
    lower = (before.gather(1, begin) + before.gather(1, end + 1)) / 2
    wrong_lower = (begin + end + 1).double() / 2 - lower
    area = (hit * wrong_lower).sum(1, keepdim=True) / (positives * negatives)
    placed = torch.where(
        hit > 0, (wrong_lower / negatives - area) / positives, (1 - lower / positives - area) / negatives
    )
    return area[:, 0], torch.empty_like(placed).scatter_(1, order, placed)


def area_interval(area: float, influence: Tensor, owner: Tensor, fewest: int) -> tuple[float, float]:
    """95 % interval (low, high) of an area from the influence of its items; normal on the scale of log(area / (1 - area)).

    Where all right items lie above all wrong ones, or below, the variance is 0, and the interval is Wilson's of `fewest` trials.

    Args:
        area: in [0, 1].
        influence: [N] float64, see `auroc_influence`.
        owner: [N] int64, number of the sample of each item; samples are independent.
        fewest: number of right items or of wrong ones, the smaller.
    """
    if not 0 < area < 1:
        return wilson(round(area) * fewest, fewest)
    cluster = torch.unique(owner, return_inverse=True)[1]
    count = int(cluster.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64, device=influence.device).index_add_(0, cluster, influence)
    error = math.sqrt(float(sums.square().sum()) * count / max(1, count - 1))
    centre, half = math.log(area / (1 - area)), Z95 * error / (area * (1 - area))
    return 1 / (1 + math.exp(-(centre - half))), 1 / (1 + math.exp(-(centre + half)))


def area_difference_interval(first: Tensor, second: Tensor, difference: float) -> tuple[float, float]:
    """95 % interval (low, high) of the difference of two areas of the same samples, from their influences (DeLong et al. 1988).

    Args:
        first, second: [N] float64 of each model, see `auroc_influence`.
        difference: second - first, in [-1, 1].
    """
    n = len(first)
    half = Z95 * math.sqrt(float((second - first).square().sum()) * n / max(1, n - 1))
    return max(-1.0, difference - half), min(1.0, difference + half)


def mean_area_interval(areas: Tensor, owner: Tensor) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of areas, such as the average precision of each query: `area_interval` over samples.

    Args:
        areas: [n] float64, in [0, 1]. owner: [n] int64, number of the sample of each.
    """
    mean = float(areas.mean())
    return area_interval(mean, (areas - mean) / len(areas), owner, len(torch.unique(owner)))
