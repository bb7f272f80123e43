"""Answers of several classifiers for the same samples, one for each random draw of training samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmssl.core.evaluator import Score, Table
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.classification import (
    CLASS_MEANS,
    class_facts,
    class_means,
    random_class_means,
    resampled_class_means,
)
from mmssl.evaluation.ranking import Predictions
from mmssl.evaluation.statistics import mean_over_draws

DRAWN = 500
"""Bootstrap draws that a variance is estimated from, which needs fewer than percentiles do."""


@dataclass(frozen=True)
class DrawnAnswers(Answers):
    """Answers of several classifiers for the same N samples, one for each draw of training samples.

    Attributes:
        predictions: of the first draw.
        draws: the answers of each draw; at least two.
    """

    draws: tuple[Answers, ...] = ()

    @classmethod
    def of(cls, draws: Sequence[Answers]) -> DrawnAnswers:
        """Those of each draw."""
        first = draws[0]
        return cls(first.keys, first.labels, first.predictions, first.names, first.answerable, tuple(draws))

    def accuracy(self) -> dict[str, Score]:
        """Means over draws of `accuracy_scores`, with intervals over draws and samples, see `mean_over_draws`."""
        scores = super().accuracy()
        n = len(self.labels)
        for k in (1, 5):
            if scores[f"acc{k}"] is None:
                continue
            hits = self._each_hits(k)
            variance = float(hits.mean(0).var(correction=0)) / max(1, n - 1)
            found = mean_over_draws(hits.mean(1).tolist(), variance, n)
            scores |= dict(zip((f"acc{k}", f"acc{k}_ci95_low", f"acc{k}_ci95_high"), found, strict=True))
        return scores

    def deviation(self) -> float:
        """Standard deviation of the accuracy between draws."""
        return float(self._each_hits(1).mean(1).std())

    def scores(self) -> dict[str, Score]:
        """Means over draws of `classification_scores`, with intervals over draws and samples.

        What drawing samples adds to those of `CLASS_MEANS` is the variance of bootstrap draws, see `resampled_class_means`.
        """
        counts, classes = self.counts, len(self.names)
        predicted = torch.stack([one.predictions.predicted for one in self.draws])
        each = [class_means(one, self.labels, classes) for one in predicted]
        chance = random_class_means(counts, self.answerable)
        scores = self.accuracy()
        for name, drawn in resampled_class_means(predicted, self.labels, classes, resamples=DRAWN).items():
            mean, low, high = mean_over_draws([one[name] for one in each], float(drawn.var()), len(self.labels))
            scores |= {name: mean, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": chance[name]}
        pairs, _ = self._together().pairs(wrong=True)
        return scores | class_facts(counts, self.names, self.answerable) | {"confused_pairs": len(pairs)}

    def hits(self, k: int = 1) -> Tensor:
        """In which share of the draws the true class is among the k best, of each sample: [N] float64."""
        return self._each_hits(k).mean(0)

    def _each_hits(self, k: int) -> Tensor:
        return torch.stack([one.hits(k) for one in self.draws])

    def tables(self) -> dict[str, Table]:
        """Tables of `Answers` over all draws.

        "samples": acc1 and acc5 are shares of the draws; columns that end in _draw0 are of the first draw. "classes": recall,
        precision and F1 of the answers of all draws together. "confusions", "confusion_matrix": n is the mean number in a draw.
        """
        count = len(self.draws)
        each = [answers.tables()["samples"] for answers in self.draws]
        rows = {name: each[0].columns[name] for name in ("key", "class")}
        of_first = each[0].columns.keys() - {"key", "class", "acc1", "acc5"}
        rows |= {f"{name}_draw0": column for name, column in each[0].columns.items() if name in of_first}
        for name in each[0].outcomes:
            right = torch.tensor([table.columns[name] for table in each], dtype=torch.float64)
            rows[name] = right.mean(0).tolist()
        measures = {name: partial(self.class_mean, name) for name in CLASS_MEANS}
        whole = self._together().tables()
        classes = whole["classes"].columns
        counted = {name: whole[name].columns for name in ("confusions", "confusion_matrix") if name in whole}
        return {
            "samples": Table(rows, each[0].outcomes, measures=measures),
            "classes": Table({**classes, "n": torch.bincount(self.labels, minlength=len(self.names)).tolist()}),
            **{
                name: Table({**columns, "n": [float(n or 0) / count for n in columns["n"]]})
                for name, columns in counted.items()
            },
        }

    def class_mean(self, name: str, counts: Tensor) -> Tensor:
        """The mean over draws of training samples."""
        return torch.stack([one.class_mean(name, counts) for one in self.draws]).mean(0)

    def _together(self) -> Answers:
        """The answers of all draws as those of one classifier for as many samples."""
        count, predictions = len(self.draws), Predictions.joined([one.predictions for one in self.draws])
        return Answers([*self.keys] * count, self.labels.repeat(count), predictions, self.names, self.answerable)
