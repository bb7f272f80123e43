"""What a corruption is: a function of a view or of its sentences, with a strength for each of five severities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
Strength = float | tuple[float, ...]
"""What a severity means to a corruption; its table says which quantities."""
Corrupt = Callable[..., "Tensor"]
"""(view as float, strength, generator) -> view; with the keyword `rate` if `Corruption.timed`. Pictures [..., 3, H, W] are in
0 ... 1, sounds [C, samples] in -1 ... 1; arrays [C, H, W] and series [C, samples] in any units."""
RewriteText = Callable[[str, float, "np.random.Generator"], str]
"""(sentence, strength, generator) -> sentence."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of views.

    Attributes:
        function: see `Corrupt`.
        strengths: its strength at each severity.
        timed: whether the function needs `rate`, the values a second (in Hz).
    """

    function: Corrupt
    strengths: tuple[Strength, Strength, Strength, Strength, Strength]
    timed: bool = False


@dataclass(frozen=True)
class TextCorruption:
    """A corruption of sentences.

    Attributes:
        function: see `RewriteText`. With the same generator a larger strength changes what a smaller one does, and more.
        strengths: its strength at each severity.
    """

    function: RewriteText
    strengths: tuple[float, float, float, float, float]


Corruptions = Mapping[str, Corruption | TextCorruption]
"""Kind -> corruption."""
