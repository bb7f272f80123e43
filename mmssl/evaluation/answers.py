"""What a classifier answered, sample by sample: its scores, and the tables of samples, classes and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmssl.core.evaluator import Score, Table
from mmssl.evaluation.classification import (
    CLASS_MEANS,
    accuracy_scores,
    class_figures,
    classification_scores,
    counted_class_means,
)
from mmssl.evaluation.ranking import Predictions

CONFUSIONS = 100
"""Wrong pairs of classes in the table of confusions, the most frequent ones."""
MATRIX = 200
"""Most classes of which the whole confusion matrix is a table."""


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
        """See `classification_scores`; and confused_pairs, the number of different wrong pairs of true and predicted class."""
        found = classification_scores(self.predictions, self.labels, self.names, self.answerable)
        return found | {"confused_pairs": len(self.pairs(wrong=True)[0])}

    def tables(self) -> dict[str, Table]:
        """Tables of samples, of classes, and of pairs of classes.

        "samples": predicted class, rank of the true one, score of each, and probability where scores give one. "confusions": true,
        predicted, number; the most frequent wrong pairs. "confusion_matrix", up to `MATRIX` classes: alike, all pairs that some
        sample has, the right ones too, so that the numbers of a class sum to its samples.
        """
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
        measures = {name: partial(self.class_mean, name) for name in CLASS_MEANS}
        return {
            "samples": Table(samples, outcomes, measures=measures),
            "classes": Table({"class": list(names), **figures}),
            "confusions": self._counted(wrong=True),
            **({"confusion_matrix": self._counted(wrong=False)} if len(names) <= MATRIX else {}),
        }

    def pairs(self, *, wrong: bool) -> tuple[Tensor, Tensor]:
        """Pairs of true and predicted class [P, 2] int64, ascending, and their numbers of samples [P].

        Args:
            wrong: leave right answers out.
        """
        every = torch.stack([self.labels, self.predictions.predicted], 1).cpu()
        chosen = every[every[:, 0] != every[:, 1]] if wrong else every
        distinct, counts = torch.unique(chosen, dim=0, return_counts=True)
        return distinct, counts

    def class_mean(self, name: str, counts: Tensor) -> Tensor:
        """A score of `CLASS_MEANS` where each sample counts as often as in draws [N, R], on the CPU: [R] float64."""
        own = (self.predictions.predicted.cpu(), self.labels.cpu())
        return counted_class_means(*own, len(self.names), counts)[name]

    def _counted(self, *, wrong: bool) -> Table:
        """Pairs by class; the wrong ones the most frequent first, and no more than `CONFUSIONS`."""
        distinct, counts = self.pairs(wrong=wrong)
        if wrong:
            most = counts.sort(descending=True, stable=True).indices[:CONFUSIONS]
            distinct, counts = distinct[most], counts[most]
        true, predicted = distinct.T.tolist() if len(distinct) else ([], [])
        columns = {
            "class": [self.names[label] for label in true],
            "predicted": [self.names[label] for label in predicted],
            "n": counts.tolist(),
        }
        return Table(columns)


def _of_both(name: str, values: Tensor | None) -> dict[str, list[Score]]:
    """Columns of the predicted and of the true class, from [N, 2]; None for a class that has no such value."""
    if values is None:
        return {}
    both: list[list[Score]] = [[None if x != x else x for x in column] for column in values.T.tolist()]
    return dict(zip((name, f"true_{name}"), both, strict=True))
