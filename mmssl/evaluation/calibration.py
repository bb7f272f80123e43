"""Calibration of cosines: the probability that two things match, fitted on held-out pairs, and thresholds for false accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.calibration_error import calibration_error, calibration_error_interval, random_halves
from mmssl.evaluation.collect import Collected, Items, KeptShards, items_in_both
from mmssl.evaluation.common import (
    PairEvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
)
from mmssl.evaluation.curves import area_interval, auroc_influence
from mmssl.evaluation.statistics import share_by_cluster

_ROWS_AT_ONCE = 65536


class CalibrationConfig(PairEvaluatorConfig):
    """Settings of the calibration of cosines between two modalities, on pairs that training did not see.

    Attributes:
        pair: the two modalities; items of one sample match, and others do not.
        prior: share of matches among the pairs whose probability is asked.
        false_accepts: rates of pairs that do not match and are accepted, each with its threshold.
        negatives: pairs that do not match, drawn for each item of the first modality.
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the halves, the negatives and the bootstrap.
    """

    kind: Literal["calibration"] = "calibration"
    prior: float = Field(default=0.5, gt=0, lt=1)
    false_accepts: tuple[float, ...] = (0.1, 0.01, 0.001)
    negatives: int = Field(default=20, ge=1)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    @field_validator("false_accepts")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate < 1 for rate in rates):
            raise ValueError(f"false_accepts: got {list(rates)}, wanted rates between 0 and 1")
        return rates

    def build(self, modalities: Mapping[str, Modality]) -> CalibrationEvaluator:
        require_modalities(modalities, self.pair)
        return CalibrationEvaluator(self, modalities)


@dataclass(frozen=True)
class Calibration:
    """Monotone map from the cosine of a pair to the probability that it matches.

    Attributes:
        prior: share of matches that the probabilities assume.
        cosines, probabilities: knots, ascending; linear between them, constant outside.
    """

    prior: float
    cosines: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, cosines: Tensor, prior: float | None = None) -> Tensor:
        """Probabilities float32, in the shape of the cosines.

        Args:
            cosines: of any shape.
            prior: share of matches among the pairs asked about; None: that of the fit.
        """
        found = np.interp(cosines.double().cpu().numpy(), self.cosines, self.probabilities)
        if prior is not None:
            match, other = found * prior / self.prior, (1 - found) * (1 - prior) / (1 - self.prior)
            found = match / (match + other)
        return torch.from_numpy(np.asarray(found)).float()

    @classmethod
    def fit(cls, cosines: np.ndarray, matches: np.ndarray, prior: float) -> Calibration:
        """Isotonic regression of matches on cosines, with weights that make `prior` of them match (Zadrozny and Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        weights = _weights(matches, prior)
        fitted = IsotonicRegression(y_min=0, y_max=1).fit(cosines, matches.astype(float), weights)
        return cls(prior, tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


@dataclass(frozen=True)
class Pairs:
    """Pairs of one half of the samples: cosines and matches [P], and the number of the sample of the first item [P]."""

    cosines: Tensor
    matches: Tensor
    owner: Tensor


class CalibrationEvaluator(Evaluator):
    """Fits on half of the samples, measures on the other half. Scores: see `calibrate`.

    Attributes:
        calibration: of the latest run.
    """

    def __init__(self, config: CalibrationConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self._shards = KeptShards(config, modalities, config.pair, config.shards, config.max_samples)
        self.kept = (self._shards,)
        self.headlines = ("ece", "AUROC", *(f"accept@{rate:g}" for rate in config.false_accepts))
        self.calibration: Calibration | None = None

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        for name in self.config.pair:
            model.require(name, shared_space=True)
        with inference(model, self.config.precision):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in self.config.pair}
            data = self._shards.collect(encode, model.device)
            scores, self.calibration = calibrate(data, self.config)
        knots = {"cosine": self.calibration.cosines, "probability": self.calibration.probabilities}
        self.tables = {"curve": Table(knots)}
        yield from broadcast_scores(scores).items()


def calibrate(data: Collected, config: CalibrationConfig) -> tuple[dict[str, Score], Calibration]:
    """Fit the probability of a match on a random half of the samples, and measure it on the other.

    Scores, all of the other half:
        ece: expected calibration error, 15 bins of equal width, of pairs of which `prior` match, with an interval by bootstrap over
            samples (see `calibration_error_interval`);  ece_cosine: that of the cosines themselves, negative ones as 0, likewise;
        brier: mean squared error, with an interval over samples (see `area_interval`);  brier_chance: that of the prior alone;
        AUROC: chance that a match has the larger cosine, with an interval over samples (DeLong's, with Obuchowski's clusters);
        threshold@f: cosine above which a share f of the wrong pairs of the fitted half lies;  false_accept@f, accept@f: shares of
            wrong and of right pairs above it, with intervals by bootstrap over samples; chance of both is f;
        each with _n, the samples of that half;  n (samples with both), n_pairs, n_excluded, n_skipped, prior, split_seed.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: fewer than four samples have both modalities.
    """
    a, b = (data[name] for name in config.pair)
    for name in config.pair:
        require_usable(data[name].rows, data[name].owner, data.keys, f"the embedding of {name!r}", unit=True)
    has, also = items_in_both(data, *config.pair)
    a, b = Items(a.rows[has], a.owner[has]), Items(b.rows[also], b.owner[also])
    samples = torch.unique(a.owner)
    if len(samples) < 4:
        raise DataError(
            f"{len(samples)} samples have both {config.pair[0]!r} and {config.pair[1]!r}, of {len(data.keys)}: wanted four or more "
            "to calibrate on one half and measure on the other; check `shards`"
        )
    halves = random_halves(len(samples), config.seed, "calibration")
    fitted, other = (_pairs(a, b, samples[half.to(samples.device)], config) for half in halves)
    calibration = Calibration.fit(fitted.cosines.numpy(), fitted.matches.numpy(), config.prior)
    scores = probability_scores(calibration(other.cosines).numpy(), other, config)
    wrong = fitted.cosines[~fitted.matches].sort(descending=True).values
    for rate in config.false_accepts:
        threshold = float(wrong[min(len(wrong) - 1, round(rate * len(wrong)))])
        scores[f"threshold@{rate:g}"] = threshold
        for name, chosen in (("false_accept", ~other.matches), ("accept", other.matches)):
            above = (other.cosines[chosen] > threshold).double()
            figure = share_by_cluster(above, other.owner[chosen], resamples=config.resamples, seed=config.seed)
            scores |= _figure(f"{name}@{rate:g}", *figure, rate, len(halves[1]))
    counts = {"n": len(samples), "n_pairs": len(other.cosines), "n_excluded": len(data.keys) - len(samples)}
    return scores | counts | {
        "n_skipped": data.skipped, "prior": config.prior, "split_seed": config.seed
    }, calibration  # fmt: skip


def _pairs(a: Items, b: Items, samples: Tensor, config: CalibrationConfig) -> Pairs:
    """All matches of some samples, and `negatives` random wrong pairs for each item of a."""
    mine, theirs = torch.isin(a.owner, samples), torch.isin(b.owner, samples)
    rows, owner, others, candidates = a.rows[mine], a.owner[mine], b.rows[theirs], b.owner[theirs]
    first = torch.searchsorted(candidates, owner)
    count = torch.searchsorted(candidates, owner, right=True) - first
    right_a = torch.arange(len(owner), device=owner.device).repeat_interleave(count)
    start = (count.cumsum(0) - count).repeat_interleave(count)
    right_b = first[right_a] + torch.arange(len(right_a), device=owner.device) - start
    draw = generator(config.seed, "calibration", "negatives", len(owner)).random((len(owner), config.negatives))
    free = (len(candidates) - count)[:, None]
    # Items of one sample lie together, so that numbers from the first of them on are moved behind the last.
    wrong_b = (torch.from_numpy(draw).to(owner.device) * free).long().clamp(max=free - 1)
    wrong_b += (wrong_b >= first[:, None]) * count[:, None]
    wrong_a = torch.arange(len(owner), device=owner.device)[:, None].expand_as(wrong_b)
    left, right = torch.cat([right_a, wrong_a.flatten()]), torch.cat([right_b, wrong_b.flatten()])
    parts = zip(left.split(_ROWS_AT_ONCE), right.split(_ROWS_AT_ONCE), strict=True)  # type: ignore[no-untyped-call]
    cosines = torch.cat([(rows[i] * others[j]).sum(1) for i, j in parts])
    matches = torch.arange(len(left)) < len(right_a)
    return Pairs(cosines.cpu(), matches, owner[left].cpu())


def _weights(matches: np.ndarray, prior: float) -> np.ndarray:
    """Weights [P] of sum 1, of which the matches have `prior`."""
    return np.asarray(np.where(matches, prior / matches.sum(), (1 - prior) / (~matches).sum()))


def probability_scores(probabilities: np.ndarray, pairs: Pairs, config: CalibrationConfig) -> dict[str, Score]:
    """ece, ece_cosine, brier and AUROC of `calibrate`, of pairs with these probabilities [P] of a match."""
    truth, owner, weights = pairs.matches.numpy(), pairs.owner.numpy(), _weights(pairs.matches.numpy(), config.prior)
    n, shares = len(np.unique(owner)), (1 - config.prior, config.prior)
    scores: dict[str, Score] = {}
    for name, claimed in (("ece", probabilities), ("ece_cosine", pairs.cosines.clamp(0, 1).numpy())):
        error, drawn = calibration_error(claimed, truth, weights), generator(config.seed, "calibration", "ece")
        interval = calibration_error_interval(
            claimed, truth, owner, error, drawn, config.resamples, strata=truth.astype(int), shares=shares
        )
        scores |= _figure(name, error, *interval, None, n)
    squared = weights * (probabilities - truth) ** 2
    # Of each kind of pairs the mean counts by its share, whatever their number in a draw.
    influence = squared - weights * np.where(truth, squared[truth].sum() / shares[1], squared[~truth].sum() / shares[0])
    brier = float(squared.sum())
    interval = area_interval(brier, torch.from_numpy(influence), pairs.owner, n)
    scores |= _figure("brier", brier, *interval, config.prior * (1 - config.prior), n)
    area, influences = auroc_influence(pairs.cosines[None], pairs.matches[None])
    interval = area_interval(float(area[0]), influences[0], pairs.owner, min(int(truth.sum()), int((~truth).sum())))
    return scores | _figure("AUROC", float(area[0]), *interval, 0.5, n)


def _figure(name: str, value: float, low: float, high: float, chance: float | None, n: int) -> dict[str, Score]:
    found: dict[str, Score] = {name: value, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_n": n}
    return found if chance is None else {**found, f"{name}_chance": chance}


def to_json(calibration: Calibration) -> dict[str, Any]:
    """As a file has it."""
    return {
        "prior": calibration.prior,
        "cosines": list(calibration.cosines),
        "probabilities": list(calibration.probabilities),
    }


def from_json(values: Mapping[str, Any]) -> Calibration:
    """The calibration of a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        cosines, probabilities = (tuple(map(float, values[name])) for name in ("cosines", "probabilities"))
        prior = float(values["prior"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"got {sorted(values)} for a calibration, wanted prior, cosines and probabilities") from error
    rising = list(cosines) == sorted(cosines) and list(probabilities) == sorted(probabilities)
    if not cosines or len(cosines) != len(probabilities) or not rising or not 0 < prior < 1:
        raise ValueError("got a calibration of other than rising knots and a prior between 0 and 1")
    return Calibration(prior, cosines, probabilities)
