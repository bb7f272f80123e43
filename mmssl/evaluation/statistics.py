"""Statistics of scores: confidence intervals, bootstrap, accuracy and recall by class. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.evaluation.ranking import Predictions

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion of n independent trials (Wilson 1927); valid at 0 and at n too.

    Raises:
        ValueError: there is no trial, or there are more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"got {successes} successes of {n} trials, wanted 0 <= successes <= n and n >= 1")
    share, square = successes / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    # Exact at the ends, where rounding would leave some 1e-18.
    return (max(0.0, centre - half) if successes else 0.0), (min(1.0, centre + half) if successes < n else 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean of independent values, Student's 95 % interval (low, high) of it, and their standard deviation.

    Args:
        values: at least two.
    """
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half, deviation


def clustered_bootstrap(
    hits: Tensor, counts: Tensor, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Cluster bootstrap: percentile interval (low, high) of sum(hits) / sum(counts); draws whole clusters, not single queries.

    The captions of one image succeed or fail together; drawing them one by one gives a too narrow interval. The ratio depends only
    on the number of draws of each distinct pair (hits, count), so one multinomial draw over the distinct pairs is the same
    bootstrap as drawing N clusters, at a cost that does not grow with N.

    Args:
        hits: [N] successful queries of each cluster.
        counts: [N] queries of each cluster, >= hits.
        resamples: number of bootstrap draws.
        seed: seed of the draws; the same seed gives the same interval.
        level: confidence level.
    """
    if len(hits) != len(counts) or not (counts > 0).any():
        raise ValueError(
            f"got {len(hits)} hits and {len(counts)} counts, wanted one of each for every cluster, some above 0"
        )
    pairs, frequency = torch.unique(torch.stack([hits.cpu(), counts.cpu()], 1).double(), dim=0, return_counts=True)
    n = len(hits)
    draws = generator(seed, "clustered_bootstrap").multinomial(n, frequency.numpy() / n, size=resamples)
    sums = draws @ pairs.numpy()
    ratios = sums[:, 0] / np.maximum(sums[:, 1], 1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_by_cluster(
    values: Tensor, owner: Tensor, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of values, and its interval (low, high) by bootstrap over the samples that own them; see `clustered_bootstrap`.

    Args:
        values: [n], numbers or bool.
        owner: [n] int64, ascending or not: number of the sample of each value.
        resamples, seed: of the bootstrap.
    """
    cluster = torch.unique(owner, return_inverse=True)[1]
    sums = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64, device=values.device)
    sums.index_add_(0, cluster, values.double())
    low, high = clustered_bootstrap(sums, torch.bincount(cluster), resamples=resamples, seed=seed)
    return float(values.double().mean()), low, high


def share_by_cluster(
    values: Tensor, owner: Tensor, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of values from 0 to 1, such as shares of right answers, and its interval: as `mean_by_cluster`.

    Where all values are 0, or all 1, every draw is the same: the interval is Wilson's of as many trials as there are samples.
    """
    mean, low, high = mean_by_cluster(values, owner, resamples=resamples, seed=seed)
    if mean in (0.0, 1.0):
        samples = len(torch.unique(owner))
        low, high = wilson(round(mean) * samples, samples)
    return mean, low, high


def random_misses(positives: Tensor, candidates: int, k: int) -> Tensor:
    """Probability that the r best of a random order of candidates have no right one, r = 1 ... k: [k, n] float64.

    Without replacement: the product over j < r of (N - R - j) / (N - j), with R right ones of N.

    Args:
        positives: [n], right candidates of each query.
        candidates: N. k: at most N.
    """
    j = torch.arange(k, dtype=torch.float64, device=positives.device)[:, None]
    return ((candidates - positives.double() - j).clamp_min(0) / (candidates - j)).cumprod(0)


def class_figures(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, list[Score]]:
    """Number of samples, recall, precision and F1 of each class, as columns; None where a figure is 0 / 0.

    Args:
        predicted: [N] int64, predicted classes.
        labels: [N] int64, in 0 ... classes-1.
        classes: K.
    """
    n = torch.bincount(labels, minlength=classes).tolist()
    claimed = torch.bincount(predicted, minlength=classes).tolist()
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    both = [of + some for of, some in zip(n, claimed, strict=True)]
    return {
        "n": n,
        "recall": [good / of if of else None for good, of in zip(right, n, strict=True)],
        "precision": [good / of if of else None for good, of in zip(right, claimed, strict=True)],
        "f1": [2 * good / of if of else None for good, of in zip(right, both, strict=True)],
    }


def classification_scores(predictions: Predictions, labels: Tensor, names: Sequence[str]) -> dict[str, Score]:
    """Accuracy (top 1, top 5), mean per-class recall and macro F1 of a classifier.

    acc1 and acc5 are shares of ranks <= 1 and <= 5 (acc5 is None below five classes); mean_per_class_recall is the mean over
    the classes that occur (scikit-learn's balanced accuracy), and absent_classes lists the others; macro_f1 is the mean over the
    classes that occur or are predicted (scikit-learn's, too); the intervals are Wilson's.

    Args:
        predictions: of N samples.
        labels: [N] int64, in 0 ... K-1.
        names: K class names.
    """
    ranks = predictions.ranks
    n, classes = len(ranks), len(names)
    right = ranks == 1
    low, high = wilson(int(right.sum()), n)
    figures = class_figures(predictions.predicted, labels, classes)
    seen = [recall for recall in figures["recall"] if isinstance(recall, float)]
    f1 = [value for value in figures["f1"] if isinstance(value, float)]
    absent = [name for name, recall in zip(names, figures["recall"], strict=True) if recall is None]
    return {
        "acc1": int(right.sum()) / n,
        "acc1_ci95_low": low,
        "acc1_ci95_high": high,
        **_acc5(int((ranks <= 5).sum()), n, classes),
        "mean_per_class_recall": sum(seen) / len(seen),
        "macro_f1": sum(f1) / len(f1),
        "absent_classes": shorten(absent) or None,
        "chance": 1 / classes,
        "classes": classes,
        "n": n,
    }


def _acc5(right: int, n: int, classes: int) -> dict[str, Score]:
    if classes < 5:
        return {"acc5": None}
    low, high = wilson(right, n)
    return {"acc5": right / n, "acc5_ci95_low": low, "acc5_ci95_high": high, "acc5_chance": 5 / classes}


def shorten(names: Sequence[str], limit: int = 20) -> str:
    """Join names in one line, at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
