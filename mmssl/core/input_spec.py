"""What views are like, as a modality makes them and as an encoder needs them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class InputSpec:
    """Size, duration, sample rate, channels and tokenizer of views, as made or as an encoder needs them. None: not applicable.

    Attributes:
        pixels: height and width of pictures.
        seconds: length of views that have one.
        rate: samples a second of sounds and series, in Hz.
        channels: of pictures, arrays and series; of sounds, 1 or 2.
        tokenizer: kind of the tokenizer that turns sentences into ids.
    """

    pixels: int | None = None
    seconds: float | None = None
    rate: float | None = None
    channels: int | None = None
    tokenizer: str | None = None

    def misfits(self, wanted: InputSpec) -> dict[str, tuple[Any, Any]]:
        """Key -> (actual, wanted) value, where both are stated and differ."""
        pairs = {key.name: (getattr(self, key.name), getattr(wanted, key.name)) for key in fields(self)}
        return {key: (got, want) for key, (got, want) in pairs.items() if None not in (got, want) and got != want}
