"""Few-shot classification: logistic regression on k training samples of each class, over several draws of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.class_names import compare_with_stored, require_class_numbers
from mmssl.evaluation.collect import Encode
from mmssl.evaluation.common import DistinctCounts, inference
from mmssl.evaluation.labelled.base import (
    Classifier,
    Classify,
    Labelled,
    LabelledConfig,
    LabelledEvaluator,
    ScaleKind,
    classifier_answers,
    number_classes,
)
from mmssl.evaluation.labelled.drawn_answers import DrawnAnswers
from mmssl.evaluation.labelled.linear_probe import Probe, Scale, fit_probes, head_tensors
from mmssl.evaluation.labelled.tip_adapter import cache_predictions
from mmssl.evaluation.prompts import PromptedConfig
from mmssl.evaluation.ranking import Predictions


class FewShotConfig(LabelledConfig, PromptedConfig):
    """Settings of few-shot classification.

    Attributes:
        shots: numbers of training samples of each class. Scores without `_shots`, and tables, are of the last one, over all draws.
        draws: number of random draws of them; the interval is that of their mean.
        scale: scaling of features, as of linear probes, from the drawn samples.
        c: inverse penalty of the logistic regression, in scikit-learn's sense. It is not chosen on samples: there are none for it.
        seed: seed of the draws.
        tip_adapter: classify by prompts with a cache of the drawn samples too, without training (Tip-Adapter): scores acc1_cache_*.
            `prompts`, `classnames` and `templates` are for this alone.
        alpha, beta: weight of the cache beside 100 times the cosine to the prompts, and how fast it falls with the distance.
    """

    kind: Literal["few_shot"] = "few_shot"
    shots: DistinctCounts = (1, 2, 4, 8, 16)
    draws: int = Field(default=10, ge=2)
    scale: ScaleKind = "unit"
    c: float = Field(default=1.0, gt=0)
    seed: int = 0
    tip_adapter: bool = False
    alpha: float = Field(default=1.0, gt=0)
    beta: float = Field(default=5.5, gt=0)

    @model_validator(mode="after")
    def _prompts_have_a_use(self) -> FewShotConfig:
        names, fields = ("prompts", "classnames", "templates", "alpha", "beta"), type(self).model_fields
        given = {name for name in names if getattr(self, name) != fields[name].default}  # a resolved recipe names all
        if given and not self.tip_adapter:
            raise ValueError(f"got {sorted(given)} without tip_adapter: set tip_adapter: true, or leave them out")
        return self

    def build(self, modalities: Mapping[str, Modality]) -> FewShot:
        return FewShot(self, modalities)


class FewShot(LabelledEvaluator):
    """Few-shot classification of test samples. Scores: see `few_shot_classifier`, and `cache_classifier` with `tip_adapter`.

    Its tensors are the heads of the first draw of each number of shots; a cache has none, it is the drawn samples.
    """

    config: FewShotConfig

    def __init__(self, config: FewShotConfig, modalities: Mapping[str, Modality]) -> None:
        super().__init__(config, modalities)
        ways = ("acc1", "acc1_cache") if config.tip_adapter else ("acc1",)
        self.headlines = tuple(f"{way}_shots{k}" for way in ways for k in config.shots)
        self._prompts = config.read_prompts(modalities) if config.tip_adapter else None
        self._classifier: Tensor | None = None

    def facts(self) -> dict[str, Any]:
        prompts = self._prompts
        said = {} if prompts is None else {"classnames": prompts.names, "templates": prompts.templates}
        return super().facts() | said

    def open(self) -> None:
        """Open the shards, and compare `classnames` with the names beside them."""
        super().open()
        if self._prompts is not None:
            compare_with_stored(self._prompts.names, self.config.shards, "`classnames`")

    def encode(self, model: EmbeddingModel) -> Encode:
        """Pooled encoder features; with `tip_adapter` embeddings in the shared space behind them, in one row [D + E], of one pass.

        Raises:
            ValueError: the model has no such features, or no shared space that `tip_adapter` needs.
        """
        if self._prompts is None:
            return super().encode(model)
        for name in (self.modality, self._prompts.modality):
            model.require(name, shared_space=True)
        self.open()
        with inference(model, self.config.precision):
            self._classifier = self._prompts.classifier(model)
        return lambda x: torch.cat(model.features_and_embeddings(self.modality, x), 1)

    def fit(self, train: Labelled) -> Classifier:
        if self._prompts is None or self._classifier is None:
            found, self.fitted = few_shot_classifier(train, self.config)
            return found
        require_class_numbers(
            train.labels,
            torch.arange(len(train.labels), device=train.labels.device),
            dict(enumerate(train.keys)),
            self._prompts.names,
        )
        width = self._classifier.shape[1]
        probes, self.fitted = few_shot_classifier(replace(train, features=train.features[:, :-width]), self.config)
        cache = cache_classifier(replace(train, features=train.features[:, -width:]), self._classifier, self.config)

        def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
            answers, said = probes(replace(test, features=test.features[:, :-width]))
            return answers, said | cache(replace(test, features=test.features[:, -width:]))

        return classify


def few_shot_classifier(train: Labelled, config: FewShotConfig) -> tuple[Classifier, dict[str, Tensor]]:
    """Classifiers of draws of k training samples of each class, and the tensors of those of the first draw of each k.

    Each process fits, and asks, those of its share of the draws. The tensors are those of `linear_classifier`, each named
    shots<k>.<name>, and `classes`, the labels of all of them.

    The answers are those of all draws of the last number of shots, see `DrawnAnswers`. It says acc1_shots<k>, the mean over draws;
    its _ci95_low and _high, over draws and test samples (see `mean_over_draws`); its _deviation between draws, and _chance.

    Raises:
        DataError: fewer than two classes, or a class with fewer training samples than the most shots.
    """
    classes, numbers = number_classes(train)
    counts = torch.bincount(numbers)
    if int(counts.min()) < max(config.shots):
        least = int(counts.argmin())
        raise DataError(
            f"shots: got {max(config.shots)}, and class {int(classes[least])} has {int(counts[least])} training samples; lower "
            "`shots`, or check `train_shards`"
        )
    fitted = {which: _fit(train.features, numbers, len(classes), *which, config) for which in _own_draws(config)}
    own = {
        f"shots{k}.{name}": x.cpu()
        for (k, draw), one in fitted.items()
        if draw == 0
        for name, x in head_tensors(one.probe, one.scale).items()
    }
    heads = {name: x for part in distributed.gather_objects(own) for name, x in part.items()}

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        each = _answers_of_draws({which: one.classify for which, one in fitted.items()}, test, classes, config)
        said: dict[str, Score] = {"draws": config.draws, "draw_seed": config.seed}
        for k, answers in each.items():
            said |= _over_draws(f"acc1_shots{k}", answers)
        return each[config.shots[-1]], said

    return classify, {**heads, "classes": classes}


def cache_classifier(
    train: Labelled, classifier: Tensor, config: FewShotConfig
) -> Callable[[Labelled], dict[str, Score]]:
    """Tip-Adapter on the draws of `few_shot_classifier`, over the classes of training; see `cache_scores`.

    It says acc1_cache_shots<k>, the mean over draws, with interval, deviation and chance as of acc1_shots<k>.

    Args:
        train: embeddings [n, E] of norm 1, with labels. classifier: [K, E], class weights of prompts, by label.
    """
    classes, numbers = number_classes(train)

    def predict(k: int, draw: int, rows: Tensor, wanted: Tensor) -> Predictions:
        chosen = _drawn(numbers, len(classes), k, draw, config)
        cache = (classifier[classes], train.features[chosen], numbers[chosen], config.alpha, config.beta)
        return cache_predictions(rows, wanted, *cache)

    def classify(test: Labelled) -> dict[str, Score]:
        own: dict[tuple[int, int], Classify] = {which: partial(predict, *which) for which in _own_draws(config)}
        said: dict[str, Score] = {}
        for k, answers in _answers_of_draws(own, test, classes, config).items():
            said |= _over_draws(f"acc1_cache_shots{k}", answers)
        return said

    return classify


def _own_draws(config: FewShotConfig) -> list[tuple[int, int]]:
    """Shots and number of each draw that is this process' share."""
    plan = [(k, draw) for k in config.shots for draw in range(config.draws)]
    return plan[distributed.rank() :: distributed.world_size()]


def _answers_of_draws(
    own: Mapping[tuple[int, int], Classify], test: Labelled, classes: Tensor, config: FewShotConfig
) -> dict[int, DrawnAnswers]:
    """Shots -> the answers of all draws, of which each process asks its share of the classifiers."""
    asked = {}
    for which, classify in own.items():
        asked[which] = classifier_answers(test, classes, classify).predictions.each(lambda x: x.cpu())
    every = {which: one for part in distributed.gather_objects(asked) for which, one in part.items()}

    def answers(one: Predictions) -> Answers:
        here = one.each(lambda x: x.to(test.labels.device))
        return classifier_answers(test, classes, lambda features, wanted: here)

    return {k: DrawnAnswers.of([answers(every[k, draw]) for draw in range(config.draws)]) for k in config.shots}


def _over_draws(name: str, answers: DrawnAnswers) -> dict[str, Score]:
    """The accuracy over draws, its interval and chance, and the standard deviation between draws."""
    found = answers.accuracy()
    said = {f"{name}{part}": found[f"acc1{part}"] for part in ("", "_ci95_low", "_ci95_high")}
    return said | {f"{name}_deviation": answers.deviation(), f"{name}_chance": found["chance"]}


@dataclass(frozen=True)
class _Fitted:
    """What was fitted on one draw."""

    scale: Scale
    probe: Probe

    def classify(self, rows: Tensor, wanted: Tensor) -> Predictions:
        return self.probe.classify(self.scale(rows), wanted)


def _fit(features: Tensor, numbers: Tensor, classes: int, k: int, draw: int, config: FewShotConfig) -> _Fitted:
    """Scaling and logistic regression of one draw of k training samples of each class.

    Args:
        features: [n, D]. numbers: [n] int64, in 0 ... classes-1.
    """
    chosen = _drawn(numbers, classes, k, draw, config)
    scale = Scale.of(features[chosen], config.scale)
    penalty = 1 / (config.c * len(chosen))
    return _Fitted(scale, fit_probes(scale(features[chosen]), numbers[chosen], classes, (penalty,))[penalty])


def _drawn(numbers: Tensor, classes: int, k: int, draw: int, config: FewShotConfig) -> Tensor:
    """Which training samples a draw takes: int64 [k * classes]."""
    order = torch.from_numpy(generator(config.seed, "few_shot", draw).permutation(len(numbers))).to(numbers.device)
    shuffled = numbers[order]
    place = torch.arange(len(shuffled), device=numbers.device)
    by_class = shuffled.sort(stable=True)
    starts = torch.searchsorted(by_class.values, torch.arange(classes, device=numbers.device))
    return order[by_class.indices[place - starts[by_class.values] < k]]
