"""Expected calibration error, its interval by bootstrap, the reliability curve, and the halves on which one fits and measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.evaluation.statistics import draw_counts, shifted_percentiles, wilson

BINS = 15
"""Bins of the expected calibration error, of equal width."""
_DRAWS_AT_ONCE = 64


def random_halves(n: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Two random halves of 0 ... n-1, each ascending int64 on the CPU; of an odd n the second has one more."""
    order = torch.from_numpy(generator(seed, purpose).permutation(n))
    return order[: n // 2].sort().values, order[n // 2 :].sort().values


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error: mean over bins of |mean probability - share that is true| (Guo et al. 2017, equation 3).

    Args:
        probabilities: [P], from 0 to 1. truth: [P] bool. weights: [P], of sum 1.
    """
    gap = np.bincount(_bins(probabilities), weights * (probabilities - truth), BINS)
    return float(np.abs(gap).sum())


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, list[Score]]:
    """Reliability curve, as columns: a row for each bin of `calibration_error` that has some sample.

    The error is the mean of |accuracy - confidence| over the bins, weighed by n.

    Args:
        probabilities: [n], of the predicted classes. truth: [n] bool, whether these are right.

    Returns:
        from and to (bounds of the bin), n, confidence (mean probability), accuracy (share that is right), and Wilson's interval of
        the accuracy as accuracy_ci95_low and accuracy_ci95_high.
    """
    place = _bins(probabilities)
    n = np.bincount(place, minlength=BINS)
    right, sums = np.bincount(place, truth, BINS), np.bincount(place, probabilities, BINS)
    some = np.flatnonzero(n)
    low, high = zip(*(wilson(int(right[i]), int(n[i])) for i in some), strict=True)
    return {
        "from": (some / BINS).tolist(),
        "to": ((some + 1) / BINS).tolist(),
        "n": n[some].tolist(),
        "confidence": (sums[some] / n[some]).tolist(),
        "accuracy": (right[some] / n[some]).tolist(),
        "accuracy_ci95_low": [*low],
        "accuracy_ci95_high": [*high],
    }


def calibration_error_interval(
    probabilities: np.ndarray,
    truth: np.ndarray,
    owner: np.ndarray,
    error: float,
    drawn: np.random.Generator,
    resamples: int,
    strata: np.ndarray,
    shares: Sequence[float],
) -> tuple[float, float]:
    """95 % interval of `calibration_error` by bootstrap over samples: see `shifted_percentiles`; not below 0.

    Args:
        probabilities, truth: [P], as of the error. owner: [P], sample of each.
        error: that of all.
        drawn: makes the draws. resamples: their number.
        strata: [P] int, 0 ... S-1: which stratum each is of. shares: [S], weight of each stratum in every draw, of sum 1.
    """
    place = _bins(probabilities)
    samples, cluster = np.unique(owner, return_inverse=True)
    sums = []
    for stratum in range(len(shares)):
        own = strata == stratum
        gaps = np.bincount(cluster[own] * BINS + place[own], (probabilities - truth)[own], len(samples) * BINS)
        counts = np.bincount(cluster[own], minlength=len(samples))
        sums.append(np.column_stack([gaps.reshape(-1, BINS), counts]))
    errors = []
    for first in range(0, resamples, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, resamples - first)
        often = draw_counts(drawn, len(samples), size)
        gap = np.zeros((size, BINS))
        for share, one in zip(shares, sums, strict=True):
            total = often @ one
            gap += share * (total[:, :-1] / total[:, -1:].clip(1))
        errors.append(np.abs(gap).sum(1))
    low, high = shifted_percentiles(np.concatenate(errors), error)
    return max(0.0, low), high


def _bins(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.minimum((probabilities * BINS).astype(int), BINS - 1))
