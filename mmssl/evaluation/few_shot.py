"""Few-shot classification: logistic regression on k training samples of each class, over several draws of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.common import broadcast_scores, require_modalities
from mmssl.evaluation.labelled import (
    Labelled,
    LabelledConfig,
    LabelledShards,
    classifier_answers,
    classifier_scores,
    number_classes,
)
from mmssl.evaluation.linear_probe import Scale, fit_probes
from mmssl.evaluation.statistics import mean_interval

_KINDS = Literal["standard", "unit", "none"]


class FewShotConfig(LabelledConfig):
    """Settings of few-shot classification.

    Attributes:
        shots: numbers of training samples of each class; all scores of the samples and classes are of the last one.
        draws: number of random draws of them; the interval is that of their mean.
        scale: scaling of features, as of linear probes, from the drawn samples.
        c: inverse penalty of the logistic regression, in scikit-learn's sense. It is not chosen on samples: there are none for it.
        seed: seed of the draws.
    """

    kind: Literal["few_shot"] = "few_shot"
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = Field(default=10, ge=2)
    scale: _KINDS = "unit"
    c: float = Field(default=1.0, gt=0)
    seed: int = 0

    @field_validator("shots")
    @classmethod
    def _positive(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
            raise ValueError(f"shots: got {list(shots)}, wanted different numbers of at least 1")
        return shots

    def build(self, modalities: Mapping[str, Modality]) -> FewShot:
        require_modalities(modalities, (self.modality, self.labels))
        return FewShot(self, modalities)


class FewShot(Evaluator):
    """Few-shot classification of test samples. Scores: see `few_shot_scores`."""

    def __init__(self, config: FewShotConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self._shards = LabelledShards(config, modalities)
        self.kept = (self._shards,)
        self.headlines = tuple(f"acc1_shots{k}" for k in config.shots)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        train, test = self._shards.features(model)
        yield from broadcast_scores(few_shot_scores(train, test, self.config)).items()


def few_shot_scores(train: Labelled, test: Labelled, config: FewShotConfig) -> dict[str, Score]:
    """Accuracy on the test samples by number of training samples of each class; each process fits its share of the draws.

    Scores: acc1_shots<k>, the mean over draws; its _ci95_low and _high, Student's interval of that mean over draws; its _deviation
    between draws; and the counts of `classifier_scores`, with chance.

    Raises:
        DataError: fewer than two classes, or a class with fewer training samples than the most shots.
    """
    classes, numbers = number_classes(train)
    counts = torch.bincount(numbers)
    most = max(config.shots)
    if int(counts.min()) < most:
        least = int(counts.argmin())
        raise DataError(
            f"shots: got {most}, and class {int(classes[least])} has {int(counts[least])} training samples; lower `shots`, or "
            "check `train_shards`"
        )
    plan = [(k, draw) for k in config.shots for draw in range(config.draws)]
    rank, world = distributed.rank(), distributed.world_size()
    mine = {i: _accuracy(train, test, classes, numbers, *plan[i], config) for i in range(rank, len(plan), world)}
    found = {i: share for part in distributed.gather_objects(mine) for i, share in part.items()}
    scores: dict[str, Score] = {}
    for number, k in enumerate(config.shots):
        shares = [found[number * config.draws + draw] for draw in range(config.draws)]
        mean, low, high, deviation = mean_interval(shares)
        name = f"acc1_shots{k}"
        scores |= {name: mean, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_deviation": deviation}
        scores[f"{name}_chance"] = 1 / len(classes)
    whole = classifier_scores(train, test, classes, _answers(train, test, classes, numbers, (most, 0), config))
    of_data = ("chance", "classes", "n")
    return scores | {name: whole[name] for name in whole if name in of_data or name.startswith("n_")} | {
        "draws": config.draws, "draw_seed": config.seed
    }  # fmt: skip


def _accuracy(
    train: Labelled, test: Labelled, classes: Tensor, numbers: Tensor, k: int, draw: int, config: FewShotConfig
) -> float:
    answers = _answers(train, test, classes, numbers, (k, draw), config)
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
