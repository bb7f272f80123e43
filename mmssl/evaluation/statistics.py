"""Statistics of scores: confidence intervals, bootstrap, and what chance gives. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.core.seeding import generator

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
RESAMPLES, SEED = 2000, 0
"""Bootstrap draws, and their seed, of intervals without settings."""
_DRAWS_AT_ONCE = 64


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


def paired_difference(gained: int, lost: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval (low, high) of the difference of two proportions of the same n trials (Tango 1998, Statistics in Medicine 17,
    891-908): the differences that the score test does not refuse. Valid where no trial differs, and where all do.

    Args:
        gained, lost: trials in which only the second, or only the first, has a success.

    Raises:
        ValueError: there is no trial, or more differ than there are.
    """
    if n < 1 or min(gained, lost) < 0 or gained + lost > n:
        raise ValueError(f"got {gained} gained and {lost} lost of {n} trials, wanted a sum of at most n, and n >= 1")
    return _least_difference(gained, lost, n, z), -_least_difference(lost, gained, n, z)


def _least_difference(gained: int, lost: int, n: int, z: float) -> float:
    from scipy.optimize import brentq

    def excess(difference: float) -> float:
        """How far the gain lies above the largest that is likely if this is the difference."""
        linear = (2 * n - gained + lost) * difference - gained - lost
        root = math.sqrt(max(0.0, linear * linear + 8 * n * lost * difference * (1 - difference)))
        likeliest = (root - linear) / (4 * n)  # share of losses
        variance = n * (2 * likeliest + difference * (1 - difference))
        return gained - lost - n * difference - z * math.sqrt(max(0.0, variance))

    below = (gained - lost) / n - 1e-9  # at the estimate itself the variance may be 0
    return -1.0 if excess(-1.0) <= 0 else float(brentq(excess, -1.0, below, xtol=1e-12))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean of independent values, Student's 95 % interval (low, high) of it, and their standard deviation.

    Args:
        values: at least two.
    """
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half, deviation


def mean_over_draws(values: Sequence[float], variance: float, samples: int) -> tuple[float, float, float]:
    """Mean of a score from 0 to 1 over random draws of the training samples, and its 95 % interval (low, high) over these and over
    the test samples.

    The variance of the mean is that of the draws over their number, plus that of drawing test samples; Student's quantile has the
    degrees of freedom of their sum (Satterthwaite 1946). What varies with both is in both, so that the interval is a little wide.
    Where all values are 0, or all 1, the interval is Wilson's of the test samples.

    Args:
        values: the score of each draw, at least two.
        variance: of the mean over these draws, over test samples.
        samples: number of test samples.
    """
    from scipy.stats import t

    mean, own = float(np.mean(values)), float(np.var(values, ddof=1)) / len(values)
    whole = own + variance
    if whole == 0:
        return (mean, *wilson(round(mean) * samples, samples)) if mean in (0.0, 1.0) else (mean, mean, mean)
    freedom = whole**2 / (own**2 / (len(values) - 1) + variance**2 / max(1, samples - 1))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(whole)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def shifted_percentiles(drawn: np.ndarray, value: float) -> tuple[float, float]:
    """95 % percentiles (low, high) of bootstrap draws [R] of a score, moved by what their mean lies above its value.

    Drawing alone raises some scores, such as a sum of absolute values, or a mean over the classes that occur in a draw.
    """
    low, high = np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - value)
    return min(float(low), value), max(float(high), value)  # equal draws differ from their mean by rounding


def draw_counts(drawn: np.random.Generator, samples: int, draws: int) -> np.ndarray:
    """How often each sample is in each of some bootstrap draws: [draws, samples], a multinomial in a quarter of its time."""
    each = [np.bincount(drawn.integers(samples, size=samples), minlength=samples) for _ in range(draws)]
    return np.stack(each)


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


def resampled_group_means(
    values: Tensor, group: Tensor, owner: Tensor, *, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Mean over groups of the mean of their values, in bootstrap draws of the samples that own them: [resamples].

    Args:
        values: [n], numbers or bool.
        group: [n] int64, in 0 ... G-1; groups without a value in a draw are left out of it.
        owner: [n] int64, number of the sample of each value; all values of a sample are drawn together.
        resamples, seed: of the bootstrap.
    """
    sample, groups = torch.unique(owner, return_inverse=True)[1].cpu().numpy(), int(group.max()) + 1
    place, samples = sample * groups + group.cpu().numpy(), int(sample.max()) + 1
    sums, counts = (
        np.bincount(place, weights, samples * groups).reshape(samples, groups)
        for weights in (values.double().cpu().numpy(), None)
    )
    drawn, found = generator(seed, "group_means"), np.empty(resamples)
    for first in range(0, resamples, _DRAWS_AT_ONCE):
        often = draw_counts(drawn, samples, min(_DRAWS_AT_ONCE, resamples - first)).astype(float)
        there = often @ counts
        found[first : first + len(often)] = (often @ sums / there.clip(1)).sum(1) / (there > 0).sum(1)
    return found


def rank_intervals(
    ranks: Tensor, owner: Tensor, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals (low, high) of the mean and of the median of ranks: percentiles of a bootstrap over the samples that own them.

    Medians are rounded down, as of the score.

    Args:
        ranks: [n] int64.
        owner: [n] int64, number of the sample of each; all ranks of a sample are drawn together.
        resamples, seed: of the bootstrap.
    """
    order = ranks.argsort()
    values = ranks[order].cpu().numpy()
    sample = torch.unique(owner[order], return_inverse=True)[1].cpu().numpy()
    counts, n = np.bincount(sample), len(values)
    # Medians of draws lie near that of all: within six standard errors, of samples whose ranks are all alike.
    reach = math.ceil(3 * math.sqrt(float((counts**2).sum())))
    near = slice(max(0, n // 2 - reach), n // 2 + reach + 1)
    before = np.bincount(sample[: near.start], minlength=len(counts))
    sums = np.column_stack([np.bincount(sample, values), counts, before])
    drawn = generator(seed, "rank_intervals")
    means, medians = np.empty(resamples), np.empty(resamples)
    for first in range(0, resamples, _DRAWS_AT_ONCE):
        part = slice(first, min(resamples, first + _DRAWS_AT_ONCE))
        often = draw_counts(drawn, len(counts), part.stop - first)
        total, number, below = (often @ sums).T
        means[part] = total / number
        until = below[:, None] + often[:, sample[near]].cumsum(1)
        middle = [(until < place[:, None]).sum(1) for place in ((number + 1) // 2, number // 2 + 1)]
        found = values[near][np.minimum(middle, until.shape[1] - 1)]
        medians[part] = found.sum(0) // 2
    mean, median = (np.quantile(found, [0.025, 0.975]) for found in (means, medians))
    return (float(mean[0]), float(mean[1])), (math.floor(median[0]), math.floor(median[1]))


def counted_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of values [n] that count as often as in draws [n, R]: [R] float64."""
    return values.double() @ counts.double() / counts.sum(0)


def counted_median(values: Tensor, counts: Tensor) -> Tensor:
    """Median of integers [n] that count as often as in draws [n, R], rounded down: [R] float64.

    Args:
        counts: sums of a draw are below 2^24, and so exact in float32.
    """
    ordered, order = values.sort()
    until = counts[order].cumsum(0)
    middle = [(until <= (until[-1] - before) // 2).sum(0) for before in (1, 0)]
    return (ordered[middle[0]] + ordered[middle[1]]).div(2, rounding_mode="floor").double()


def random_misses(positives: Tensor, candidates: int, k: int) -> Tensor:
    """Probability that the r best of a random order of candidates have no right one, r = 1 ... k: [k, n] float64.

    Without replacement: the product over j < r of (N - R - j) / (N - j), with R right ones of N.

    Args:
        positives: [n], right candidates of each query.
        candidates: N. k: at most N.
    """
    j = torch.arange(k, dtype=torch.float64, device=positives.device)[:, None]
    return ((candidates - positives.double() - j).clamp_min(0) / (candidates - j)).cumprod(0)


def random_average_precision(positives: Tensor, candidates: int) -> Tensor:
    """Average precision of a random order of candidates, its mean over all orders: [n] float64.

    If rank r is right, 1 + (r - 1)(R - 1) / (N - 1) right ones are expected up to it, with R right ones of N. Divided by r, the
    mean over ranks is (H + (N - H)(R - 1) / (N - 1)) / N, with H the N-th harmonic number.

    Args:
        positives: [n], right candidates of each query.
        candidates: N.
    """
    harmonic = float((1 / torch.arange(1, candidates + 1, dtype=torch.float64)).sum())
    return (harmonic + (candidates - harmonic) * (positives.double() - 1) / max(1, candidates - 1)) / candidates


def shorten(names: Sequence[str], limit: int = 20) -> str:
    """Join names in one line, at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
