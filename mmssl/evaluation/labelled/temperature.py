"""Calibration of class probabilities: a temperature fitted on one half of the samples, and measures of the other half."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
from mmssl.core.seeding import generator
from mmssl.evaluation.calibration_error import (
    calibration_error,
    calibration_error_interval,
    random_halves,
    reliability,
)
from mmssl.evaluation.statistics import RESAMPLES, SEED, mean_interval
from mmssl.evaluation.tiles import exact_products

CLIP_SCALE = 100.0
"""The largest logit scale of CLIP's training; that of a model without one."""
LIMITS = (1e-3, 1e3)
"""Least and greatest temperature: the likelihood of samples that are all right grows without end as it falls to 0."""


def class_calibration(
    embeddings: Tensor, classifier: Tensor, labels: Tensor, logit_scale: float | None
) -> tuple[dict[str, Score], Table]:
    """How far the probabilities of classes can be trusted: softmax of logits, before and after temperature scaling.

    Logits are cosines times the logit scale; after scaling, these over `temperature`, which one random half of the samples chose
    (Guo et al. 2017, section 4.2). Scores of the other half, each with its n and an interval (of ece by bootstrap over samples, of
    the others Student's of the mean):
        ece: expected calibration error of the predicted class' probability, 15 bins of equal width (equation 3);
        nll: mean negative logarithm of the true class' probability, in nats;  nll_chance: that of equal probabilities;
        brier: mean over samples of the squared error, summed over classes (Brier 1950);  brier_chance, alike.
    They are of the logit scale itself; of the temperature as ece_calibrated, nll_calibrated and brier_calibrated; and of the scale
    100 as ece_scale100, ..., which is equal for all models. And temperature, logit_scale, n_fitted (samples that chose the
    temperature) and split_seed. The table has the reliability curve (see `reliability`) of each: `probabilities` is "before",
    "after" or "scale100".

    Args:
        embeddings: [N, E] float32. classifier: [K, E] float32, class weights.
        labels: [N] int64, in 0 ... K-1.
        logit_scale: the model's own; None: `CLIP_SCALE`.

    Raises:
        DataError: fewer than four samples.
    """
    if len(labels) < 4:
        raise DataError(
            f"calibration: number of samples with a label: got {len(labels)}, wanted four or more to fit a temperature "
            "on one half and measure on the other; set calibration: false, or check `shards`"
        )
    fitted, other = (half.to(labels.device) for half in random_halves(len(labels), SEED, "class_calibration"))
    scale = CLIP_SCALE if logit_scale is None else logit_scale
    temperature = fit_temperature(embeddings[fitted], classifier, labels[fitted], scale)
    scores: dict[str, Score] = {
        "temperature": temperature,
        "logit_scale": scale,
        "n_fitted": len(fitted),
        "split_seed": SEED,
    }
    chance = {"nll": math.log(len(classifier)), "brier": 1 - 1 / len(classifier)}
    columns: dict[str, list[Score]] = {}
    for suffix, name, factor in (
        ("", "before", scale),
        ("_calibrated", "after", scale / temperature),
        ("_scale100", "scale100", CLIP_SCALE),
    ):
        found, curve = _measures(embeddings[other], classifier, labels[other], factor)
        for metric, (value, low, high) in found.items():
            whole = f"{metric}{suffix}"
            scores |= {whole: value, f"{whole}_ci95_low": low, f"{whole}_ci95_high": high, f"{whole}_n": len(other)}
            if metric in chance:
                scores[f"{whole}_chance"] = chance[metric]
        columns.setdefault("probabilities", []).extend([name] * len(curve["n"]))
        for column, values in curve.items():
            columns.setdefault(column, []).extend(values)
    return scores, Table(columns)


def fit_temperature(embeddings: Tensor, classifier: Tensor, labels: Tensor, scale: float) -> float:
    """The temperature of least negative log-likelihood, within `LIMITS`.

    The likelihood is concave in 1 / temperature, so its slope has one root: there the mean logit that the probabilities expect is
    the mean logit of the true class.

    Args:
        embeddings: [N, E] float32. classifier: [K, E] float32. labels: [N] int64.
        scale: of the cosines; the temperature divides these logits.
    """
    from scipy.optimize import brentq

    def slope(logarithm: float) -> float:
        """Of the negative log-likelihood, at 1 / temperature = exp(logarithm)."""
        total = 0.0
        for logits, own in _logits(embeddings, classifier, labels, scale):
            expected = ((logits * math.exp(logarithm)).softmax(1) * logits).sum(1)
            total += float((expected - logits.gather(1, own[:, None])[:, 0]).sum())
        return total / len(labels)

    least, greatest = LIMITS
    low, high = -math.log(greatest), -math.log(least)
    if slope(low) >= 0:
        return greatest
    if slope(high) <= 0:
        return least
    return math.exp(-brentq(slope, low, high, xtol=1e-9))


def _logits(embeddings: Tensor, classifier: Tensor, labels: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [n, K] float64 and labels [n] of a tile of samples at a time."""
    size = max(1, 2**22 // len(classifier))
    for rows, own in zip(embeddings.split(size), labels.split(size), strict=True):  # type: ignore[no-untyped-call]
        with exact_products():
            yield (rows @ classifier.T).double() * scale, own


def _measures(
    embeddings: Tensor, classifier: Tensor, labels: Tensor, scale: float
) -> tuple[dict[str, tuple[float, float, float]], dict[str, list[Score]]]:
    """ "ece", "nll" and "brier" of the softmax of logits, each with its interval, and the reliability curve."""
    parts = []
    for logits, own in _logits(embeddings, classifier, labels, scale):
        logarithms = logits.log_softmax(1)
        true, every = logarithms.gather(1, own[:, None])[:, 0], logarithms.exp()
        confidence, predicted = every.max(1)
        brier = every.square().sum(1) - 2 * true.exp() + 1
        parts.append(torch.stack([confidence, predicted == own, -true, brier]).cpu())
    confidence, right, nll, brier = torch.cat(parts, 1)
    probabilities, truth, n = confidence.numpy(), right.numpy(), len(right)
    error = calibration_error(probabilities, truth, np.full(n, 1 / n))
    whole, drawn = np.zeros(n, dtype=int), generator(SEED, "class_calibration", "ece")
    interval = calibration_error_interval(
        probabilities, truth, np.arange(n), error, drawn, RESAMPLES, strata=whole, shares=(1.0,)
    )
    found = {
        "ece": (error, *interval),
        "nll": _mean(nll),
        "brier": _mean(brier),
    }
    return found, reliability(probabilities, truth)


def _mean(values: Tensor) -> tuple[float, float, float]:
    """Mean of values >= 0, and its interval."""
    mean, low, high, _ = mean_interval(values.tolist())
    return mean, max(0.0, low), high
