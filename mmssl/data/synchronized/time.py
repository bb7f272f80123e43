"""Synchronized time crop and speed change, in seconds and not in frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from mmssl.core.config import Probability
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values
from mmssl.data.timeline import Extent

EARLY, LATE = 0.045, 0.125
"""Seconds by which sound may lead or lag the picture before people notice (ITU-R BT.1359-1)."""


class TimeCrop(Operation):
    """Synchronized time crop: the same window of all modalities, drawn from the headers before decoding.

    It starts exactly at the time of a frame of the first video. It must be first in the list, and applies to every sample. If
    `speed` follows, the window is longer or shorter, so that the result has `seconds`.

    Attributes:
        seconds: length of the window. Shorter samples stay shorter; views pad them.
        jitter: maximum shift in seconds of sounds against the first video, below what people notice.
    """

    kind: Literal["time_crop"] = "time_crop"
    probability: Probability = Setting(default=1.0, ge=1)
    seconds: float = Setting(gt=0)
    jitter: float = Setting(default=0.0, ge=0, le=LATE)

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the window on decoded values, at normal speed."""
        extents = extents_of(values, modalities)
        return self.draw_window(
            extents, modalities, rng, Fraction(1), partial(frame_before, first_frame_times(values, modalities))
        )

    def draw_window(
        self,
        extents: Mapping[str, Extent],
        modalities: Mapping[str, Modality],
        rng: np.random.Generator,
        speed: Fraction,
        snap: Callable[[float], float],
    ) -> dict[str, Any]:
        """Draw start and length in seconds on the sample's timeline, and the jitter of each modality (delay of its window).

        The window lies where all modalities have content, if their overlap is long enough; the start is uniform.

        Args:
            extents: of the modalities that have a time axis.
            modalities: all of them.
            rng: of this operation on this sample.
            speed: factor of the window's length over `seconds`.
            snap: time -> start time of the frame on screen then.
        """
        if not extents:
            raise Skip("no_time_axis")
        length = float(self.seconds * speed)
        first = max(extent.start for extent in extents.values())
        last = min(extent.seconds for extent in extents.values()) - length
        chance, *moves = rng.random(1 + len(extents)).tolist()
        start = first + chance * (last - first) if last > first else max(0.0, min(first, last))
        start = snap(start)
        sounds = [name for name in extents if modalities[name].audible]
        alone = len(sounds) == len(extents) and len(sounds) < 2
        low, high = max(-self.jitter, -LATE), min(self.jitter, EARLY)
        jitter = {
            # A sound shorter than the jitter must not end before its window starts.
            name: max(-start, min(low + move * (high - low), max(0.0, extents[name].seconds - start) / 2))
            for name, move in zip(extents, moves, strict=True)
            if self.jitter and name in sounds and not alone
        }
        return {"start": start, "length": length, "jitter": jitter}


def first_frame_times(values: Values, modalities: Mapping[str, Modality]) -> np.ndarray | None:
    """Time in seconds at which each frame of the first modality with frames is first shown."""
    found = (modalities[name].frame_times(value) for name, value in values.items())
    return next((times for times in found if times is not None), None)


def frame_before(times: np.ndarray | None, moment: float) -> float:
    """Start time of the frame on screen at `moment`; `moment` itself if there is none."""
    place = -1 if times is None else int(np.searchsorted(times, moment, side="right")) - 1
    return moment if times is None or place < 0 else max(0.0, float(times[place]))


def lengths_of(values: Values, modalities: Mapping[str, Modality]) -> dict[str, float]:
    """Durations in seconds of the decoded values with a time axis."""
    lengths = {name: modalities[name].length(value) for name, value in values.items()}
    return {name: seconds for name, seconds in lengths.items() if seconds is not None}


def extents_of(values: Values, modalities: Mapping[str, Modality]) -> dict[str, Extent]:
    """Extents of the decoded values with a time axis."""
    return {name: Extent(seconds) for name, seconds in lengths_of(values, modalities).items()}


class Speed(Operation):
    """Synchronized speed change of all modalities; the pitch of sounds changes with it, as on a tape.

    Attributes:
        factors: speeds to choose from, equally likely; 1.25 takes four fifths of the time. At most two decimals, for exactness.
    """

    kind: Literal["speed"] = "speed"
    probability: Probability = 0.5
    factors: tuple[float, ...] = Setting(default=(0.8, 0.9, 1.1, 1.25), min_length=1)

    @field_validator("factors")
    @classmethod
    def _rational(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        for factor in factors:
            if not 0.25 <= factor <= 4 or round(factor, 2) != factor:
                raise ValueError(f"got a factor of {factor}, wanted 0.25 to 4 with at most two decimals")
        return factors

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the factor as a fraction, such as "5/4". Independent of values, as it is drawn before decoding."""
        return {"factor": str(Fraction(str(self.factors[int(rng.integers(len(self.factors)))])))}
