"""Few-shot classification: logistic regression on k training samples of each class, over several draws of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
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
from mmssl.evaluation.labelled.linear_probe import Probe, Scale, fit_probes
from mmssl.evaluation.ranking import Predictions
from mmssl.evaluation.statistics import mean_interval


class FewShotConfig(LabelledConfig):
    """Settings of few-shot classification.

    Attributes:
        shots: numbers of training samples of each class. Scores without `_shots`, and tables, are of the last one, over all draws.
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


@dataclass(frozen=True)
class DrawnAnswers(Answers):
    """Answers of several classifiers for the same N samples, one for each draw of training samples.

    Attributes:
        predictions: of the first draw.
        draws: the answers of each draw; at least two.
    """

    draws: tuple[Answers, ...] = ()

    @classmethod
    def of(cls, draws: tuple[Answers, ...]) -> DrawnAnswers:
        """Those of each draw."""
        return cls(draws[0].keys, draws[0].labels, draws[0].predictions, draws[0].names, draws)

    def scores(self) -> dict[str, Score]:
        """Means over draws of `classification_scores`, with Student's intervals of these means."""
        each = [answers.scores() for answers in self.draws]
        scores = dict(each[0])
        for name in ("acc1", "acc5", "mean_per_class_recall", "macro_f1"):
            values = [value for one in each if isinstance(value := one[name], float)]
            if values:
                scores[name], scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"], _ = mean_interval(values)
        return scores

    def tables(self) -> dict[str, Table]:
        """Tables of `Answers` over all draws.

        "samples": acc1 and acc5 are shares of the draws; predicted_draw0 and rank_draw0 are of the first draw. "classes": recall,
        precision and F1 of the answers of all draws together. "confusions": n is the mean number in a draw.
        """
        count = len(self.draws)
        each = [answers.tables()["samples"] for answers in self.draws]
        rows = {name: each[0].columns[name] for name in ("key", "class")}
        rows |= {f"{name}_draw0": each[0].columns[name] for name in ("predicted", "rank")}
        for name in each[0].outcomes:
            right = torch.tensor([table.columns[name] for table in each], dtype=torch.float64)
            rows[name] = right.mean(0).tolist()
        parts = zip(*((one.ranks, one.tied, one.predicted) for one in (a.predictions for a in self.draws)), strict=True)
        together = Predictions(*(torch.cat(part) for part in parts))
        whole = Answers([*self.keys] * count, self.labels.repeat(count), together, self.names).tables()
        classes, confusions = whole["classes"].columns, whole["confusions"].columns
        return {
            "samples": Table(rows, each[0].outcomes),
            "classes": Table({**classes, "n": torch.bincount(self.labels, minlength=len(self.names)).tolist()}),
            "confusions": Table({**confusions, "n": [float(n or 0) / count for n in confusions["n"]]}),
        }


def few_shot_classifier(train: Labelled, config: FewShotConfig) -> Classifier:
    """Classifiers of draws of k training samples of each class; each process fits, and asks, those of its share of the draws.

    The answers are those of all draws of the last number of shots, see `DrawnAnswers`. It says acc1_shots<k>, the mean over draws;
    its _ci95_low and _high, Student's interval of that mean over draws; its _deviation between draws, and _chance.

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
    mine = range(distributed.rank(), len(plan), distributed.world_size())
    fitted = {plan[i]: _fit(train.features, numbers, len(classes), *plan[i], config) for i in mine}

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        own = {which: _predictions(*probe, test, classes) for which, probe in fitted.items()}
        found = {which: one for part in distributed.gather_objects(own) for which, one in part.items()}

        def answers(k: int, draw: int) -> Answers:
            one = found[k, draw]
            here = Predictions(*(x.to(test.labels.device) for x in (one.ranks, one.tied, one.predicted)))
            return classifier_answers(test, classes, lambda features, wanted: here)

        said: dict[str, Score] = {"draws": config.draws, "draw_seed": config.seed}
        for k in config.shots:
            each = tuple(answers(k, draw) for draw in range(config.draws))
            shares = [int((one.predictions.ranks == 1).sum()) / len(one.labels) for one in each]
            mean, low, high, deviation = mean_interval(shares)
            name = f"acc1_shots{k}"
            said |= {name: mean, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_deviation": deviation}
            said[f"{name}_chance"] = 1 / len(classes)
        return DrawnAnswers.of(each), said

    return classify


def _predictions(scale: Scale, probe: Probe, test: Labelled, classes: Tensor) -> Predictions:
    """What one classifier predicts, on the CPU."""
    found = classifier_answers(
        test, classes, lambda features, wanted: probe.classify(scale(features), wanted)
    ).predictions
    return Predictions(found.ranks.cpu(), found.tied.cpu(), found.predicted.cpu())


def _fit(
    features: Tensor, numbers: Tensor, classes: int, k: int, draw: int, config: FewShotConfig
) -> tuple[Scale, Probe]:
    """Scaling and logistic regression of one draw of k training samples of each class.

    Args:
        features: [n, D]. numbers: [n] int64, in 0 ... classes-1.
    """
    order = torch.from_numpy(generator(config.seed, "few_shot", draw).permutation(len(numbers))).to(numbers.device)
    shuffled = numbers[order]
    place = torch.arange(len(shuffled), device=numbers.device)
    by_class = shuffled.sort(stable=True)
    starts = torch.searchsorted(by_class.values, torch.arange(classes, device=numbers.device))
    chosen = order[by_class.indices[place - starts[by_class.values] < k]]
    scale = Scale.of(features[chosen], config.scale)
    penalty = 1 / (config.c * len(chosen))
    return scale, fit_probes(scale(features[chosen]), numbers[chosen], classes, (penalty,))[penalty]
