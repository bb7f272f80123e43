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


def mean_area_interval(areas: Tensor, owner: Tensor) -> tuple[float, float]:
    """95 % interval (low, high) of the mean of areas, such as the average precision of each query: `area_interval` over samples.

    Args:
        areas: [n] float64, in [0, 1]. owner: [n] int64, number of the sample of each.
    """
    mean = float(areas.mean())
    return area_interval(mean, (areas - mean) / len(areas), owner, len(torch.unique(owner)))
