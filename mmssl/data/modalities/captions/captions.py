"""The captions of a sample, each with its weight, and given false captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Captions(tuple[str, ...]):
    """All captions of a sample, non-empty, with sampling weights.

    Attributes:
        weights: sampling weight of each caption, relative to the others.
        negatives: false captions that the data give for this sample; often none.
    """

    weights: tuple[float, ...]
    negatives: tuple[str, ...]

    def __new__(
        cls, texts: Sequence[str], weights: Sequence[float] | None = None, negatives: Sequence[str] = ()
    ) -> Captions:
        self = super().__new__(cls, texts)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self)
        self.negatives = tuple(negatives)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.weights, self.negatives

    def map(self, function: Callable[[str], str]) -> Captions:
        """Rewrite every caption, true or false; weights stay."""
        return Captions([*map(function, self)], self.weights, [*map(function, self.negatives)])
