"""The forgetting guard of a fine-tuning recipe: the weights between start and end that keep old tasks (WiSE-FT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from mmssl.core.config import Config
from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score
from mmssl.recipe.unions import EvaluatorUnion

PointScores = Mapping[str, Score]
"""Score by "<evaluator>/<metric>"."""


_LESS_IS_BETTER = re.compile(r"(mean_rank|median_rank|ece|ece_cosine|brier|gap|false_accept@.*)$")


def refuse_less_is_better(metric: str) -> None:
    """Refuse a score that would choose the worst model.

    Raises:
        ValueError: less of it is better.
    """
    if _LESS_IS_BETTER.search(metric):
        raise ValueError(
            f"got {metric!r}, of which less is better; wanted a score of which more is, such as an accuracy"
        )


class KeepConfig(Config):
    """After training, interpolate between the weights of start and end (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).

    Every point is measured on validation shards, and the chosen one is written to `kept` in the run folder: the best by `new` among
    those that lose at most `largest_loss` of `old`. The start loses nothing, so there always is one.

    Attributes:
        evaluators: name -> measure of what must not be forgotten, on validation shards; `new` may be of the recipe's evaluators.
        old: score of an old task that must be kept, as "<evaluator>/<metric>" of `evaluators`; larger is better.
        new: score of the new task, as "<evaluator>/<metric>" of `evaluators` or of the recipe; larger is better.
        largest_loss: largest loss of `old` against the start.
        points: number of interpolated weights, with start and end, evenly spaced.
    """

    evaluators: dict[str, EvaluatorUnion] = Field(min_length=1)
    old: str
    new: str
    largest_loss: float = Field(default=0.01, ge=0)
    points: int = Field(default=11, ge=2)

    @model_validator(mode="after")
    def _old_is_measured(self) -> Self:
        if self.old.partition("/")[0] not in self.evaluators or "/" not in self.old:
            raise ValueError(
                f"old: got {self.old!r}, wanted '<evaluator>/<metric>' of keep.evaluators: {sorted(self.evaluators)}"
            )
        refuse_less_is_better(self.old)
        refuse_less_is_better(self.new)
        return self

    def suite(self, others: Mapping[str, EvaluatorUnion]) -> dict[str, EvaluatorUnion]:
        """The evaluators of the sweep: those of `keep`, and the one of `new`, which may be among `others`.

        Raises:
            ValueError: `new` names an evaluator that is in neither, or one that is in both.
        """
        name, slash, _ = self.new.partition("/")
        both = sorted(self.evaluators.keys() & others.keys())
        if not slash or both or name not in self.evaluators.keys() | others.keys():
            raise ValueError(
                f"keep.new: got {self.new!r}, wanted '<evaluator>/<metric>' of one evaluator: "
                f"{', '.join([*self.evaluators, *others])}" + (f"; rename {both} of keep" if both else "")
            )
        return {**self.evaluators, **({name: others[name]} if name in others else {})}


@dataclass(frozen=True)
class Point:
    """Interpolated weights: (1 - share) * start + share * end.

    Attributes:
        share: of the fine-tuned weights, in [0, 1].
        scores: of all evaluators.
    """

    share: float
    scores: PointScores

    def value(self, metric: str) -> float:
        """A score as a number.

        Raises:
            RecipeError: it was not measured, or is not defined.
        """
        value = self.scores.get(metric)
        if not isinstance(value, int | float):
            names = ", ".join(name for name, x in self.scores.items() if isinstance(x, float))
            raise RecipeError(f"got no number for the score {metric!r}, wanted one of {names}")
        return float(value)


def choose_point(points: Sequence[Point], keep: KeepConfig) -> Point:
    """The point with the best `new` among those that lose at most `largest_loss` of `old` against the first; ties: the earliest."""
    least = points[0].value(keep.old) - keep.largest_loss
    kept = [point for point in points if point.value(keep.old) >= least - 1e-12]
    return max(kept, key=lambda point: (point.value(keep.new), -point.share))


def points_table(points: Sequence[Point], chosen: Point, keep: KeepConfig) -> str:
    """Old and new figures of each point with their intervals, as text; the chosen one is marked, and the rule is said."""
    lines = [f"{'fine-tuned share':>18}  {keep.old:>28}  {keep.new:>28}"]
    for point in points:
        figures = "  ".join(f"{_with_interval(point, metric):>28}" for metric in (keep.old, keep.new))
        share = f"{'* ' if point is chosen else ''}{point.share:.2f}"
        lines.append(f"{share:>18}  {figures}")
    lines.append(f"* best {keep.new} of those that lose at most {keep.largest_loss:g} of {keep.old}")
    return "\n".join(lines)


def _with_interval(point: Point, metric: str) -> str:
    low, high = (point.scores.get(f"{metric}_ci95_{end}") for end in ("low", "high"))
    interval = f" [{low:.3f}, {high:.3f}]" if isinstance(low, float) and isinstance(high, float) else ""
    return f"{point.value(metric):.3f}{interval}"
