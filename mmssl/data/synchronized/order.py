"""Synchronized time reversal, rolling and time masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mmssl.core.config import Probability, Share
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values
from mmssl.data.synchronized.time import first_frame_times, lengths_of


class Reverse(Operation):
    """Time reversal of all modalities. Temporal order in captions is swapped; samples whose captions mention speech stay unchanged.

    Speech in the sound itself is not detected: do not use this for data with speech.
    """

    kind: Literal["reverse"] = "reverse"
    probability: Probability = 0.5

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """The length of the sample in seconds: all modalities are reversed about its middle."""
        return {"length": _length(values, modalities)}


class Roll(Operation):
    """Circular shift of all modalities in time, cut at a frame. Captions that name an order or a direction prevent it."""

    kind: Literal["roll"] = "roll"
    probability: Probability = 0.5

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the new beginning in the sample; with the sample's length, both in seconds."""
        length = _length(values, modalities)
        start = _snap(float(rng.uniform(0, length)), first_frame_times(values, modalities), length)
        return {"length": length, "start": start}


class TimeMask(Operation):
    """Time mask: hide a span of time, with black frames and silence.

    Attributes:
        share: range of its length as a share of the sample's.
        mode: "same": the same span in all modalities; "complementary": one drawn modality is hidden outside of the span instead, so
            that no time is hidden in it and in the others; "independent": a separate span for each modality.
    """

    kind: Literal["time_mask"] = "time_mask"
    probability: Probability = 0.5
    share: Share = (0.1, 0.4)
    mode: Literal["same", "complementary", "independent"] = "same"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the hidden spans [start, stop] of each modality with a time axis; with the sample's length, in seconds."""
        length = _length(values, modalities)
        timed, times = list(lengths_of(values, modalities)), first_frame_times(values, modalities)

        def span() -> list[float]:
            hidden = float(rng.uniform(*self.share)) * length
            start = float(rng.uniform(0, length - hidden))
            return [_snap(start, times, length), _snap(start + hidden, times, length, up=True)]

        one = span()
        spans = {name: [span() if self.mode == "independent" else one] for name in timed}
        if self.mode == "complementary":
            if len(timed) < 2:
                raise Skip("one_timed_modality")
            spans[timed[int(rng.integers(len(timed)))]] = [s for s in ([0.0, one[0]], [one[1], length]) if s[0] < s[1]]
        return {"length": length, "spans": spans}


def _length(values: Values, modalities: Mapping[str, Modality]) -> float:
    lengths = lengths_of(values, modalities)
    if not lengths:
        raise Skip("no_time_axis")
    return max(lengths.values())


def _snap(time: float, times: np.ndarray | None, length: float, *, up: bool = False) -> float:
    """The start of the last frame before `time`, or with `up` of the first after it; `time` itself without frames."""
    if times is None:
        return time
    edges = np.concatenate([[0.0], times[(times > 0) & (times < length)], [length]])
    place = (
        int(np.searchsorted(edges, time, side="left")) if up else int(np.searchsorted(edges, time, side="right")) - 1
    )
    return float(edges[min(place, len(edges) - 1 if up else len(edges) - 2)])
