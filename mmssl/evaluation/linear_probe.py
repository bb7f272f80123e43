"""Linear probe: logistic regression on frozen encoder features, without heads or prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, NumericError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, KeptShards, items_in_both
from mmssl.evaluation.common import (
    EvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
)
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.statistics import classification_scores

PENALTIES = tuple(10.0**exponent for exponent in (1, 0, -1, -2, -3, -4, -5, -6))


class LinearProbeConfig(EvaluatorConfig):
    """Settings of a linear probe.

    Attributes:
        shards: test shards; no hyperparameter is chosen on them.
        train_shards: training shards of the probe.
        modality: modality to classify.
        labels: modality with the class number; samples that lack it, or `modality`, are left out and counted.
        scale: scaling of features: "standard": mean 0 and variance 1 of every feature over the training part, so that one grid of
            penalties suits encoders of any scale; "unit": norm 1 of every sample, as CLIP's embeddings have; "none".
        penalties: grid of L2 penalties lambda; scikit-learn's C is 1 / (lambda * n).
        validation: share of the training samples for choosing the penalty. The probe is then fitted on all of them.
        seed: seed of the split.
        max_train_samples: number of training samples, the first ones; None: all.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    train_shards: tuple[str, ...] = Field(min_length=1)
    modality: str
    labels: str = "label"
    scale: Literal["standard", "unit", "none"] = "standard"
    penalties: tuple[float, ...] = PENALTIES
    validation: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0
    max_train_samples: int | None = Field(default=None, ge=2)

    @field_validator("penalties")
    @classmethod
    def _positive(cls, penalties: tuple[float, ...]) -> tuple[float, ...]:
        if not penalties or min(penalties) <= 0:
            raise ValueError(
                f"penalties: got {list(penalties)}, wanted numbers above 0, because without a penalty the fit may not exist"
            )
        return penalties

    def build(self, modalities: Mapping[str, Modality]) -> LinearProbe:
        require_modalities(modalities, (self.modality, self.labels))
        return LinearProbe(self, modalities)


class LinearProbe(Evaluator):
    """Linear probe: fits on the training shards, evaluates on the test shards. Scores: see `probe_scores`."""

    def __init__(self, config: LinearProbeConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        names = (config.modality, config.labels)
        self._train = KeptShards(config, modalities, names, config.train_shards, config.max_train_samples)
        self._test = KeptShards(config, modalities, names, config.shards, config.max_samples)
        self.headlines = ("acc1",)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        model.require(config.modality, shared_space=False)
        train = self._features(model, self._train)
        test = self._features(model, self._test)
        scores = probe_scores(train, test, config)
        yield from broadcast_scores(scores).items()

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._train.close()
        self._test.close()

    def _features(self, model: EmbeddingModel, shards: KeptShards) -> Labelled:
        config = self.config
        with inference(model):
            encode = {config.modality: lambda x: model.features(config.modality, x), config.labels: lambda x: x}
            data = shards.collect(encode, model.device)
        return labelled(data, config.modality, config.labels)


@dataclass(frozen=True)
class Labelled:
    """Features [n, D] float32 and labels [n] int64 of samples with both; numbers of `excluded` and `skipped` (damaged) ones."""

    features: Tensor
    labels: Tensor
    excluded: int = 0
    skipped: int = 0


def labelled(data: Collected, modality: str, labels: str) -> Labelled:
    """Select the samples of a data set that have features and a label.

    Raises:
        NumericError: a feature is not finite.
        DataError: no sample has both.
    """
    rows, owner = data[modality].rows, data[modality].owner
    require_usable(rows, owner, data.keys, f"the feature vector of {modality!r}", unit=False)
    with_label, with_row = items_in_both(data, modality, labels)
    if int(with_label.sum()) != int(with_row.sum()):
        raise DataError(
            f"{modality!r} or {labels!r} has several items in one sample, wanted one of each for a linear probe"
        )
    excluded = len(data.keys) - int(with_label.sum())
    return Labelled(rows[with_label], data[labels].rows[with_row], excluded, data.skipped)


def probe_scores(train: Labelled, test: Labelled, config: LinearProbeConfig) -> dict[str, Score]:
    """Choose the penalty on a part of the training samples, fit on all of them, evaluate on the test samples.

    Scores: those of `classification_scores` (classes are the training labels; another test label counts as an error and in
    n_unseen), validation_acc1, penalty, penalty_at_edge (the grid should be wider), gradient (largest entry at the end of the fit;
    0 is exact), n_train, n_excluded and n_skipped (of the test samples), n_train_excluded and n_train_skipped, split_seed.

    Raises:
        DataError: fewer than two classes, or too few samples to split.
    """
    classes, train_labels = torch.unique(train.labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"the probe's training samples have {len(classes)} class, wanted at least two; check `train_shards`"
        )
    chosen, validation_acc1 = choose_penalty(train.features, train_labels, len(classes), config)
    scale = Scale.of(train.features, config.scale)
    probe = fit_probes(scale(train.features), train_labels, len(classes), (chosen,))[chosen]
    known = torch.isin(test.labels, classes)
    # A label that training lacks gets the last class number + 1, for which the probe has no row.
    numbers = torch.where(known, torch.searchsorted(classes, test.labels).clamp(max=len(classes) - 1), len(classes))
    ranks = torch.full_like(numbers, len(classes) + 5)
    if known.any():
        ranks[known] = probe.ranks(scale(test.features[known]), numbers[known])
    names = [str(label) for label in classes.tolist()]
    unseen = [] if known.all() else ["(not in training)"]
    scores = classification_scores(ranks, numbers, names + unseen)
    return scores | {
        "chance": 1 / len(classes),
        "classes": len(classes),
        "n_unseen": int((~known).sum()),
        "n_train": len(train_labels),
        "n_excluded": test.excluded,
        "n_skipped": test.skipped,
        "n_train_excluded": train.excluded,
        "n_train_skipped": train.skipped,
        "validation_acc1": validation_acc1,
        "penalty": chosen,
        "penalty_at_edge": int(len(config.penalties) > 1 and chosen in (min(config.penalties), max(config.penalties))),
        "gradient": probe.gradient,
        "split_seed": config.seed,
    }


def choose_penalty(features: Tensor, labels: Tensor, classes: int, config: LinearProbeConfig) -> tuple[float, float]:
    """The penalty with the best accuracy on a random part of the training samples (the larger of equals), and that accuracy."""
    n = len(labels)
    held = max(1, round(config.validation * n))
    if n - held < 2:
        raise DataError(f"got {n} training samples for the probe, wanted more than {held}, which choose the penalty")
    order = torch.from_numpy(generator(config.seed, "linear_probe").permutation(n)).to(features.device)
    held_out, rest = order[:held], order[held:]
    scale = Scale.of(features[rest], config.scale)
    probes = fit_probes(scale(features[rest]), labels[rest], classes, config.penalties)
    best, accuracy = 0.0, -1.0
    for penalty in sorted(config.penalties, reverse=True):
        ranks = probes[penalty].ranks(scale(features[held_out]), labels[held_out])
        share = int((ranks == 1).sum()) / held
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
        exact = features.double()
        mean, deviation = torch.zeros_like(exact[0]), torch.ones_like(exact[0])
        if kind == "standard":
            mean, deviation = exact.mean(0), exact.std(0, unbiased=False)
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

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Rank of the true class of each sample, with the tie rule of all evaluators."""
        ones = torch.ones_like(features[:, :1])
        return class_ranks(torch.cat([features, ones], 1), torch.cat([self.weight, self.bias[:, None]], 1), labels)[0]


def probe_objective(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Ridge logistic loss: mean cross-entropy + penalty / 2 * |weight|^2. Scikit-learn's objective with C = 1 / (penalty * n)."""
    return F.cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()


def fit_probes(features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]) -> dict[float, Probe]:
    """Fit a logistic regression for each penalty: minimise `probe_objective` by L-BFGS in float64 on all samples.

    Features of encoders are ill-conditioned, and L-BFGS on them takes hundreds of passes. So it works in whitened coordinates,
    where the Hessian is near the identity: features are centred, rotated to the eigenbasis of their covariance (once for all
    penalties) and coordinate i is divided by sqrt(eigenvalue_i / K + penalty). Penalties go from large to small, each starts from
    the last solution.

    Args:
        features: [n, D] float64.
        labels: [n] int64, in 0 ... K-1.
        classes: K.
        penalties: all above 0.

    Returns:
        penalty -> probe.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        mean = features.mean(0)
        centred = (features - mean).T.contiguous()  # [D, n]: both products of a pass read it in the order of memory
        values, basis = torch.linalg.eigh(centred @ centred.T / len(features))
        rotated = basis.T @ centred
        weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
        bias = torch.zeros(classes, dtype=torch.float64, device=features.device)
        probes = {}
        for penalty in sorted(penalties, reverse=True):
            stretch = (values.clamp_min(0) / classes + penalty).sqrt()
            weight, bias = _minimise(rotated / stretch[:, None], stretch, labels, penalty, weight, bias)
            own = weight @ basis.T
            probes[penalty] = _finished(own, bias - own @ mean, features, labels, penalty)
    return probes


def _minimise(
    whitened: Tensor, stretch: Tensor, labels: Tensor, penalty: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve for weight [K, D] and bias [K] in rotated coordinates, where logits [K, n] = weight @ (whitened * stretch) + bias."""
    inner, bias, decay = weight * stretch, bias.clone(), penalty / stretch.square()
    samples = torch.arange(len(labels), device=labels.device)
    solver = torch.optim.LBFGS(
        [inner, bias],
        max_iter=1000,
        tolerance_grad=1e-6,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        # Gradient by hand: nearly all time goes here, and autograd would read the features in the slow memory order.
        logs = (inner @ whitened + bias[:, None]).log_softmax(0)
        loss = (decay * inner.square()).sum() / 2 - logs[labels, samples].mean()
        slope = logs.exp()
        slope[labels, samples] -= 1
        slope /= len(labels)
        inner.grad, bias.grad = slope @ whitened.T + decay * inner, slope.sum(1)
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return inner / stretch, bias


def _finished(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, penalty: float) -> Probe:
    """Objective and gradient of a solution in the caller's coordinates."""
    with torch.enable_grad():
        inputs = [weight.requires_grad_(), bias.requires_grad_()]
        value = probe_objective(weight, bias, features, labels, penalty)
        gradients = torch.autograd.grad(value, inputs)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    if not torch.isfinite(value):
        raise NumericError(
            f"the probe with penalty {penalty:g} did not converge to a finite objective; set larger `penalties`"
        )
    return Probe(weight.detach(), bias.detach(), value.item(), largest)
