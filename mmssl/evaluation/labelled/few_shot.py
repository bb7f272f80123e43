"""Few-shot classification: logistic regression on k training samples of each class, over several draws of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.labelled.base import (
    Classifier,
    Counts,
    Labelled,
    LabelledConfig,
    LabelledEvaluator,
    ScaleKind,
    classifier_answers,
    number_classes,
)
from mmssl.evaluation.labelled.linear_probe import Scale, fit_probes
from mmssl.evaluation.statistics import mean_interval


class FewShotConfig(LabelledConfig):
    """Settings of few-shot classification.

    Attributes:
        shots: numbers of training samples of each class. Scores without `_shots`, and the rows of samples, are of the first draw of
            the last one.
        draws: number of random draws of them; the interval is that of their mean.
        scale: scaling of features, as of linear probes, from the drawn samples.
        c: inverse penalty of the logistic regression, in scikit-learn's sense. It is not chosen on samples: there are none for it.
        seed: seed of the draws.
    """

    kind: Literal["few_shot"] = "few_shot"
    shots: Counts = (1, 2, 4, 8, 16)
    draws: int = Field(default=10, ge=2)
    scale: ScaleKind = "unit"
    c: float = Field(default=1.0, gt=0)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> FewShot:
        return FewShot(self, modalities)


class FewShot(LabelledEvaluator):
    """Few-shot classification of test samples. Scores: see `few_shot_classifier`."""

    config: FewShotConfig

    def __init__(self, config: FewShotConfig, modalities: Mapping[str, Modality]) -> None:
        super().__init__(config, modalities)
        self.headlines = tuple(f"acc1_shots{k}" for k in config.shots)

    def fit(self, train: Labelled) -> Classifier:
        return few_shot_classifier(train, self.config)


def few_shot_classifier(train: Labelled, config: FewShotConfig) -> Classifier:
    """Classifiers of draws of k training samples of each class; each process fits its share of the draws.

    The answers are those of the first draw of the last number of shots. It says acc1_shots<k>, the mean over draws; its
    _ci95_low and _high, Student's interval of that mean over draws; its _deviation between draws, and _chance.

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
    plan = [(k, draw) for k in config.shots for draw in range(config.draws)]

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        rank, world = distributed.rank(), distributed.world_size()
        mine = {
            i: _accuracy(_answers(train, test, classes, numbers, plan[i], config))
            for i in range(rank, len(plan), world)
        }
        found = {i: share for part in distributed.gather_objects(mine) for i, share in part.items()}
        said: dict[str, Score] = {"draws": config.draws, "draw_seed": config.seed}
        for number, k in enumerate(config.shots):
            shares = [found[number * config.draws + draw] for draw in range(config.draws)]
            mean, low, high, deviation = mean_interval(shares)
            name = f"acc1_shots{k}"
            said |= {name: mean, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_deviation": deviation}
            said[f"{name}_chance"] = 1 / len(classes)
        return _answers(train, test, classes, numbers, (config.shots[-1], 0), config), said

    return classify


def _accuracy(answers: Answers) -> float:
    return float((answers.predictions.ranks == 1).double().mean())


def _answers(
    train: Labelled, test: Labelled, classes: Tensor, numbers: Tensor, which: tuple[int, int], config: FewShotConfig
) -> Answers:
    """Answers of the classifier of one draw: which = (shots, number of the draw)."""
    k, draw = which
    order = torch.from_numpy(generator(config.seed, "few_shot", draw).permutation(len(numbers))).to(numbers.device)
    shuffled = numbers[order]
    place = torch.arange(len(shuffled), device=numbers.device)
    by_class = shuffled.sort(stable=True)
    starts = torch.searchsorted(by_class.values, torch.arange(len(classes), device=numbers.device))
    chosen = order[by_class.indices[place - starts[by_class.values] < k]]
    scale = Scale.of(train.features[chosen], config.scale)
    penalty = 1 / (config.c * len(chosen))
    probe = fit_probes(scale(train.features[chosen]), numbers[chosen], len(classes), (penalty,))[penalty]
    return classifier_answers(test, classes, lambda features, wanted: probe.classify(scale(features), wanted))
