"""What a classifier answered, sample by sample: its scores, and the tables of samples, classes and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.core.evaluator import Score, Table
from mmssl.evaluation.classification import accuracy_scores, class_figures, classification_scores
from mmssl.evaluation.ranking import Predictions

CONFUSIONS = 100
"""Pairs of classes in the table of confusions, the most frequent ones."""


@dataclass(frozen=True)
class Answers:
    """The answers of a classifier for N samples of K classes.

    Attributes:
        keys: keys of the samples.
        labels: [N] int64, in 0 ... K-1.
        predictions: of the samples.
        names: K class names.
        answerable: how many of them can be predicted, the first ones.
    """

    keys: Sequence[str]
    labels: Tensor
    predictions: Predictions
    names: Sequence[str]
    answerable: int

    @property
    def counts(self) -> list[int]:
        """Samples of each class [K]."""
        return list(torch.bincount(self.labels, minlength=len(self.names)).tolist())

    def hits(self, k: int = 1) -> Tensor:
        """Whether the true class is among the k best, of each sample: [N] float64."""
        return (self.predictions.ranks <= k).double()

    def accuracy(self) -> dict[str, Score]:
        """See `accuracy_scores`."""
        return accuracy_scores(self.predictions.ranks, self.counts, self.answerable)

    def scores(self) -> dict[str, Score]:
        """See `classification_scores`."""
        return classification_scores(self.predictions, self.labels, self.names, self.answerable)

    def tables(self) -> dict[str, Table]:
        """Tables "samples" (predicted class, rank of the true one, score of each, and probability where scores give one), "classes"
        and "confusions" (true, predicted, number)."""
        names = self.names
        ranks, predicted = self.predictions.ranks.cpu(), self.predictions.predicted.tolist()
        samples: dict[str, Sequence[Score]] = {
            "key": list(self.keys),
            "class": [names[label] for label in self.labels.tolist()],
            "predicted": [names[label] for label in predicted],
            "rank": ranks.tolist(),
            **_of_both("score", self.predictions.scores),
            **_of_both("probability", self.predictions.probabilities),
            "acc1": (ranks == 1).int().tolist(),
            "acc5": (ranks <= 5).int().tolist(),
        }
        outcomes = ("acc1", "acc5") if self.answerable >= 5 else ("acc1",)
        figures = class_figures(self.predictions.predicted, self.labels, len(names))
        return {
            "samples": Table(samples, outcomes),
            "classes": Table({"class": list(names), **figures}),
            "confusions": self._confusions(),
        }

    def _confusions(self) -> Table:
        wrong = self.predictions.predicted != self.labels
        pairs = torch.stack([self.labels[wrong], self.predictions.predicted[wrong]], 1).cpu()
        distinct, counts = torch.unique(pairs, dim=0, return_counts=True)
        most = counts.sort(descending=True, stable=True).indices[:CONFUSIONS]
        true, predicted = distinct[most].T.tolist() if len(most) else ([], [])
        columns = {
            "class": [self.names[label] for label in true],
            "predicted": [self.names[label] for label in predicted],
            "n": counts[most].tolist(),
        }
        return Table(columns)


def _of_both(name: str, values: Tensor | None) -> dict[str, list[Score]]:
    """Columns of the predicted and of the true class, from [N, 2]; None for a class that has no such value."""
    if values is None:
        return {}
    both: list[list[Score]] = [[None if x != x else x for x in column] for column in values.T.tolist()]
    return dict(zip((name, f"true_{name}"), both, strict=True))
