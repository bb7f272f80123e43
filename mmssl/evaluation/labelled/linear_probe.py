"""Linear probe: logistic regression on frozen encoder features, without heads or prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.errors import NumericError
from mmssl.core.evaluator import Score
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.labelled.base import (
    Classifier,
    Labelled,
    LabelledConfig,
    LabelledEvaluator,
    ScaleKind,
    classifier_answers,
    held_out,
    number_classes,
)
from mmssl.evaluation.probe_solver import ProbeSolver
from mmssl.evaluation.ranking import Predictions, class_ranks

ROWS = 2**16
"""Samples that are scaled at a time in float64."""
PENALTIES = tuple(10.0**exponent for exponent in (1, 0, -1, -2, -3, -4, -5, -6))


class LinearProbeConfig(LabelledConfig):
    """Settings of a linear probe.

    Attributes:
        scale: scaling of features: "standard": mean 0 and variance 1 of every feature over the training part, so that one grid of
            penalties suits encoders of any scale; "unit": norm 1 of every sample, as CLIP's embeddings have; "none".
        penalties: grid of L2 penalties lambda; scikit-learn's C is 1 / (lambda * n).
        validation: share of the training samples for choosing the penalty. The probe is then fitted on all of them.
        seed: seed of the split.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    scale: ScaleKind = "standard"
    penalties: tuple[float, ...] = PENALTIES
    validation: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    @field_validator("penalties")
    @classmethod
    def _positive(cls, penalties: tuple[float, ...]) -> tuple[float, ...]:
        if not penalties or min(penalties) <= 0:
            raise ValueError(
                f"penalties: got {list(penalties)}, wanted numbers above 0, because without a penalty the fit may not exist"
            )
        return penalties

    def build(self, modalities: Mapping[str, Modality]) -> LinearProbe:
        return LinearProbe(self, modalities)


class LinearProbe(LabelledEvaluator):
    """Linear probe: fits on the training shards, evaluates on the test shards. Scores: see `linear_classifier`."""

    config: LinearProbeConfig

    def fit(self, train: Labelled) -> Classifier:
        classify, self.fitted = linear_classifier(train, self.config)
        return classify


def linear_classifier(train: Labelled, config: LinearProbeConfig) -> tuple[Classifier, dict[str, Tensor]]:
    """Choose the penalty on a part of the training samples, and fit on all of them: the classifier, and its tensors.

    Logits are weight @ (x - mean) / deviation + bias; with scale "unit" x has norm 1, mean is 0 and deviation 1. Row k of weight is
    of the label classes[k].

    It says validation_acc1, penalty, penalty_at_edge (the grid should be wider), gradient (largest entry at the end of the fit; 0
    is exact), split_seed.

    Raises:
        DataError: fewer than two classes, or too few samples to split.
    """
    classes, numbers = number_classes(train)
    chosen, validation_acc1 = choose_penalty(train.features, numbers, len(classes), config)
    scale = Scale.of(train.features, config.scale)
    probe = fit_probes(scale(train.features), numbers, len(classes), (chosen,))[chosen]
    at_edge = len(config.penalties) > 1 and chosen in (min(config.penalties), max(config.penalties))
    said: dict[str, Score] = {
        "validation_acc1": validation_acc1,
        "penalty": chosen,
        "penalty_at_edge": int(at_edge),
        "gradient": probe.gradient,
        "split_seed": config.seed,
    }

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        return classifier_answers(test, classes, lambda x, wanted: probe.classify(scale(x), wanted)), said

    return classify, {**head_tensors(probe, scale), "classes": classes}


def choose_penalty(features: Tensor, labels: Tensor, classes: int, config: LinearProbeConfig) -> tuple[float, float]:
    """The penalty with the best accuracy on a random part of the training samples (the larger of equals), and that accuracy."""
    split = held_out(len(labels), config.validation, config.seed, "linear_probe")
    held, rest = (part.to(features.device) for part in split)
    scale = Scale.of(features[rest], config.scale)
    probes = fit_probes(
        scale(features[rest]), labels[rest], classes, config.penalties, tolerance=1e-4, dtype=torch.float32
    )
    best, accuracy = 0.0, -1.0
    for penalty in sorted(config.penalties, reverse=True):
        predictions = probes[penalty].classify(scale(features[held]), labels[held])
        share = int((predictions.ranks == 1).sum()) / len(held)
        if share > accuracy:
            best, accuracy = penalty, share
    return best, accuracy


@dataclass(frozen=True)
class Scale:
    """Feature scaling: an affine map fitted on training samples, or with `unit` normalisation of each sample."""

    mean: Tensor
    deviation: Tensor
    unit: bool

    @classmethod
    def of(cls, features: Tensor, kind: str) -> Scale:
        """Fit the scaling on features [n, D]."""
        mean = features.new_zeros(features.shape[1], dtype=torch.float64)
        deviation = torch.ones_like(mean)
        if kind == "standard":
            mean = features.mean(0, dtype=torch.float64)
            squares = torch.stack([(part.double() - mean).square().sum(0) for part in torch.split(features, ROWS)])
            deviation = (squares.sum(0) / len(features)).sqrt()
            # A constant feature is rounding noise: dividing by its deviation would make it the largest.
            deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)
        return cls(mean, deviation, kind == "unit")

    def __call__(self, features: Tensor) -> Tensor:
        """Scale features [n, D] -> [n, D] float64."""
        exact = features.double()
        return F.normalize(exact, dim=1) if self.unit else (exact - self.mean) / self.deviation


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Attributes:
        weight: [K, D] float64.
        bias: [K] float64.
        objective: value of `probe_objective` at the solution.
        gradient: largest absolute entry of its gradient at the solution.
    """

    weight: Tensor
    bias: Tensor
    objective: float
    gradient: float

    def classify(self, features: Tensor, labels: Tensor) -> Predictions:
        """Rank of the true class of each sample, with the tie rule of all evaluators, and the predicted class, by logits."""
        rows = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        return class_ranks(rows, torch.cat([self.weight, self.bias[:, None]], 1), labels, scale=1.0)


def head_tensors(probe: Probe, scale: Scale) -> dict[str, Tensor]:
    """Tensors of a linear classifier of features, see `linear_classifier`."""
    return {"weight": probe.weight, "bias": probe.bias, "mean": scale.mean, "deviation": scale.deviation}


def probe_objective(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Ridge logistic loss: mean cross-entropy + penalty / 2 * |weight|^2. Scikit-learn's objective with C = 1 / (penalty * n)."""
    return F.cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()


def fit_probes(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = 1e-7,
    dtype: torch.dtype = torch.float64,
) -> dict[float, Probe]:
    """Fit a logistic regression for each penalty: minimise `probe_objective` on all samples, by `ProbeSolver`.

    Features are centred and rotated to the eigenbasis of their covariance once for all penalties, which go from large to small.

    Args:
        features: [n, D] float64.
        labels: [n] int64, in 0 ... K-1.
        classes: K.
        penalties: all above 0.
        tolerance: largest entry of the gradient at the end, by weight and bias, as in scikit-learn.
        dtype: of the passes over the samples: float32, which is enough for a tolerance of 1e-4, halves their time.

    Returns:
        penalty -> probe.

    Raises:
        NumericError: an objective is not finite.
    """
    probes = {}
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        mean = features.mean(0)
        centred = (features - mean).to(dtype)
        values, basis = (x.to(dtype) for x in torch.linalg.eigh((centred.T @ centred / len(features)).double()))
        solver = ProbeSolver(centred @ basis, labels, classes, values, basis, mean.to(dtype), tolerance)
        del centred
        for penalty in sorted(penalties, reverse=True):
            found = solver.minimise(penalty)
            if not math.isfinite(found.objective):
                raise NumericError(
                    f"the probe with penalty {penalty:g} did not converge to a finite objective; set larger `penalties`"
                )
            weight = (found.weight @ basis.T).double()
            probes[penalty] = Probe(weight, found.bias.double() - weight @ mean, found.objective, found.gradient)
    return probes
