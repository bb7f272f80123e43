"""Scores of a classifier: accuracy, and means over classes of recall and F1, with intervals and chance. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.evaluation.ranking import Predictions
from mmssl.evaluation.statistics import RESAMPLES, SEED, shifted_percentiles, shorten, wilson

CLASS_MEANS = ("mean_per_class_recall", "macro_f1")
"""Scores that are means over classes."""
_SAMPLES_AT_ONCE = 2**19


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


def classification_scores(
    predictions: Predictions, labels: Tensor, names: Sequence[str], answerable: int | None = None
) -> dict[str, Score]:
    """Accuracy (top 1, top 5), mean per-class recall and macro F1 of a classifier, with intervals and chance.

    See `accuracy_scores`; mean_per_class_recall is the mean over the classes that occur (scikit-learn's balanced accuracy), and
    absent_classes lists the others; macro_f1 is the mean over the classes that occur or are predicted (scikit-learn's, too). Their
    intervals are bootstraps over samples, see `class_mean_interval`; bootstrap_seed is their seed. Chance is that of
    `random_class_means`. Also classes (those that can be answered), and n.

    Args:
        predictions: of N samples.
        labels: [N] int64, in 0 ... K-1.
        names: K class names.
        answerable: how many of them can be predicted, the first ones; None: all.
    """
    known = len(names) if answerable is None else answerable
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    scores = accuracy_scores(predictions.ranks, counts, known)
    drawn = resampled_class_means(predictions.predicted[None], labels, len(names))
    chance = random_class_means(counts, known)
    for name, value in class_means(predictions.predicted, labels, len(names)).items():
        low, high = class_mean_interval(value, drawn[name], counts)
        scores |= {name: value, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": chance[name]}
    return scores | class_facts(counts, names, known)


def accuracy_scores(ranks: Tensor, counts: Sequence[int], answerable: int) -> dict[str, Score]:
    """acc1 and acc5, the shares of ranks <= 1 and <= 5, with Wilson's intervals; acc5 is None below five classes.

    chance and acc5_chance are those of guesses; samples of a class that cannot be answered are wrong in any case.

    Args:
        ranks: [N] int64, of the true classes.
        counts: [K], samples of each class. answerable: classes that can be predicted, the first ones.
    """
    n, chance = len(ranks), sum(counts[:answerable]) / len(ranks) / answerable
    scores: dict[str, Score] = {"chance": chance, "n": n}
    for k in (1, 5):
        if k > answerable:
            scores[f"acc{k}"] = None
            continue
        right = int((ranks <= k).sum())
        low, high = wilson(right, n)
        scores |= {f"acc{k}": right / n, f"acc{k}_ci95_low": low, f"acc{k}_ci95_high": high}
        if k > 1:
            scores[f"acc{k}_chance"] = k * chance
    return scores


def class_facts(counts: Sequence[int], names: Sequence[str], answerable: int) -> dict[str, Score]:
    """absent_classes, classes and bootstrap_seed of `classification_scores`."""
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    return {"absent_classes": shorten(absent) or None, "classes": answerable, "bootstrap_seed": SEED}


def class_means(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """The scores of `CLASS_MEANS`; arguments as of `class_figures`."""
    figures = class_figures(predicted, labels, classes)
    return {
        name: float(np.mean([value for value in figures[column] if isinstance(value, float)]))
        for name, column in zip(CLASS_MEANS, ("recall", "f1"), strict=True)
    }


def resampled_class_means(
    predicted: Tensor, labels: Tensor, classes: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, np.ndarray]:
    """The scores of `CLASS_MEANS` in bootstrap draws of the samples, [resamples] each; of several classifiers their means.

    Args:
        predicted: [D, N] int64, predicted classes of D classifiers, for which the same samples are drawn.
        labels: [N] int64, in 0 ... classes-1.
        classes: K.
        resamples: number of draws. seed: of the draws.
    """
    own, answers = labels.cpu().numpy(), predicted.cpu().numpy()
    n, drawn = len(own), generator(seed, "class_means")
    size = max(1, _SAMPLES_AT_ONCE // n)
    found = np.empty((2, resamples))
    for first in range(0, resamples, size):
        which = drawn.integers(n, size=(min(size, resamples - first), n))
        there = _counts_by_class(own[which], classes)
        recall, f1 = np.zeros((2, len(which)))
        for one in answers:
            right = _counts_by_class(np.where(one == own, own, classes)[which], classes + 1)[:, :-1]
            either = there + _counts_by_class(one[which], classes)
            recall += (right / there.clip(1)).sum(1) / (there > 0).sum(1)
            f1 += (2 * right / either.clip(1)).sum(1) / (either > 0).sum(1)
        found[:, first : first + len(which)] = recall / len(answers), f1 / len(answers)
    return dict(zip(CLASS_MEANS, found, strict=True))


def counted_class_means(predicted: Tensor, labels: Tensor, classes: int, counts: Tensor) -> dict[str, Tensor]:
    """The scores of `CLASS_MEANS` where samples count several times, or not: [R] float64 each.

    Args:
        predicted: [N] int64. labels: [N] int64, in 0 ... classes-1.
        classes: K.
        counts: [N, R], how often each sample counts in each of R draws.
    """
    often = counts.double()
    empty = often.new_zeros(classes, often.shape[1])
    there, claimed = (empty.index_add(0, which, often) for which in (labels, predicted))
    right = empty.index_add(0, labels, often * (predicted == labels)[:, None])
    either = there + claimed
    recall = (right / there.clamp_min(1)).sum(0) / (there > 0).sum(0)
    f1 = (2 * right / either.clamp_min(1)).sum(0) / (either > 0).sum(0)
    return dict(zip(CLASS_MEANS, (recall, f1), strict=True))


def class_mean_interval(value: float, drawn: np.ndarray, counts: Sequence[int]) -> tuple[float, float]:
    """95 % interval (low, high) of a score of `CLASS_MEANS`: see `shifted_percentiles`.

    Where all samples are right, or all wrong, every draw is the same: the interval is Wilson's of as many trials as have the
    variance of the mean over classes, K^2 / (sum over classes of 1 / samples).

    Args:
        value: the score. drawn: [R], see `resampled_class_means`.
        counts: samples of each class.
    """
    if 0 < value < 1:
        low, high = shifted_percentiles(drawn, value)
        return max(0.0, low), min(1.0, high)
    some = [count for count in counts if count]
    trials = max(1, int(len(some) ** 2 / sum(1 / count for count in some)))
    return wilson(round(value) * trials, trials)


def random_class_means(counts: Sequence[int], answerable: int) -> dict[str, float]:
    """What guesses give in place of the scores of `CLASS_MEANS`, each class equally likely: their exact expectation.

    Of c guesses of a class, c n / N are right in the mean, and F1 is 2 right / (n + c). The mean is over the classes that occur and
    those that are guessed without occurring, the number of which depends on the other N - c guesses.

    Args:
        counts: [K], samples of each class, N in all. answerable: classes that are guessed, the first ones.
    """
    from scipy.stats import binom

    n, occurring = sum(counts), sum(count > 0 for count in counts)
    held = [count for count in counts[:answerable] if count]
    recall = len(held) / (answerable * occurring)
    most = int(binom.isf(1e-16, n, 1 / answerable))
    share = _mean_of_reciprocal(occurring, answerable - len(held), answerable - 1, n)
    claimed = np.arange(most + 1)
    weights = binom.pmf(claimed, n, 1 / answerable) * share[n - claimed]
    kinds, often = np.unique(held, return_counts=True)
    right = claimed * kinds[:, None] / n
    f1 = often @ (2 * right / (kinds[:, None] + claimed)) @ weights
    return dict(zip(CLASS_MEANS, (recall, float(f1)), strict=True))


def _mean_of_reciprocal(some: int, empty: int, bins: int, most: int) -> np.ndarray:
    """Mean of 1 / (some + hit), where t balls fall into bins at random and `hit` of the `empty` bins get some: t = 0 ... most."""
    hit = np.arange(empty + 1)
    found = np.full(most + 1, 1 / (some + empty))
    likely = (hit == 0).astype(float)
    for balls in range(most + 1):
        found[balls] = likely @ (1 / (some + hit))
        if likely[-1] > 1 - 1e-15:  # all are hit, and stay so
            break
        new = likely * (empty - hit) / bins
        likely = likely - new
        likely[1:] += new[:-1]
    return found


def _counts_by_class(values: np.ndarray, classes: int) -> np.ndarray:
    """How often each class is in each row of values [R, N]: [R, classes]."""
    places = values + classes * np.arange(len(values))[:, None]
    return np.bincount(places.ravel(), minlength=classes * len(values)).reshape(-1, classes)
