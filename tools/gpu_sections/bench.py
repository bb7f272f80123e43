"""What every section is given, and what a row is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .models import MODELS, TINY, Card, ClipShape, card_of

Figures = dict[str, Any]
"""A row: value, unit, and what it can be at best (`roofline`, from a data sheet, in the same unit); the rest are details."""
Rows = Iterator[tuple[str, Callable[[], Figures]]]


@dataclass(frozen=True)
class Bench:
    """Device and sizes of a measurement.

    Attributes:
        device: to measure.
        tiny: toy sizes that run every path, on a CPU too; their figures mean nothing.
        folder: for what a section writes, such as shards.
        data: folder of cifar10-train.npz and cifar10-test.npz; None: there is none.
        workers: processes that decode.
        seconds: left for this section.
    """

    device: torch.device
    tiny: bool
    folder: Path
    data: Path | None
    workers: int
    seconds: float

    @property
    def card(self) -> Card:
        """Peaks of the device."""
        return card_of(self.device)

    @property
    def repeats(self) -> int:
        """Timed calls."""
        return 2 if self.tiny else 20

    def models(self, *names: str) -> dict[str, ClipShape]:
        """Models by name; the toy one in their place."""
        return TINY if self.tiny else {name: MODELS[name] for name in names}
