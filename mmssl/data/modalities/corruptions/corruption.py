"""What a corruption is: a function of a view or of its sentences, with a strength for each of five severities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor

SEVERITIES = (1, 2, 3, 4, 5)
Corrupt = Callable[["Tensor", float, "Generator"], "Tensor"]
"""(view as float, strength, generator) -> view. Pictures [..., 3, H, W] are in 0 ... 1, sounds [C, samples] in -1 ... 1."""
Rewrite = Callable[[str, float, "np.random.Generator"], str]
"""(sentence, strength, generator) -> sentence."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of views.

    Attributes:
        function: see `Corrupt`.
        strengths: its strength at each severity.
        seconds: whether strengths are in seconds, and the function takes them in values (`values_per_second`).
    """

    function: Corrupt
    strengths: tuple[float, float, float, float, float]
    seconds: bool = False


@dataclass(frozen=True)
class TextCorruption:
    """A corruption of sentences.

    Attributes:
        function: see `Rewrite`. With the same generator a larger strength changes what a smaller one does, and more.
        strengths: its strength at each severity.
    """

    function: Rewrite
    strengths: tuple[float, float, float, float, float]
