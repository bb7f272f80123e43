"""The captions of a sample, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Captions(tuple[str, ...]):
    """All captions of a sample, non-empty, with sampling weights.

    Attributes:
        weights: sampling weight of each caption, relative to the others.
    """

    weights: tuple[float, ...]

    def __new__(cls, texts: Sequence[str], weights: Sequence[float] | None = None) -> Captions:
        self = super().__new__(cls, texts)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.weights
