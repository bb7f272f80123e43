"""Synchronized operations on the order of time: reversal, rolling and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.image import ImageModality
from mmssl.data.modalities.image_views import Scale
from mmssl.data.modalities.label import LabelModality
from mmssl.data.modalities.text import Captions, TextModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.synchronized.caption_order import mentions_speech, swap_order
from mmssl.data.synchronized.operation import Entry, Field, Kernel, Operation, Probability, Skip, Values, register
from mmssl.data.synchronized.time import STILL, TIMELESS, WHOLE, fit_sound, length_of, rate_of
from mmssl.data.timeline import Clip


class Reverse(Operation):
    """Everything backwards. Captions that tell what comes when are turned too; with words of speech the sample stays as it is.

    Speech itself cannot be told from other sounds: leave this out where people speak.
    """

    kind: Literal["reverse"] = "reverse"
    probability: Probability = 0.5

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Length of the sample in seconds: all modalities are turned about its middle."""
        return {"length": _length(values, modalities)}


class Roll(Operation):
    """The end of everything put before its beginning, cut at a frame. Captions that tell what comes when, or where
    something goes, forbid it.
    """

    kind: Literal["roll"] = "roll"
    probability: Probability = 0.5

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Length of the sample, and where in it the new beginning is, both in seconds."""
        length = _length(values, modalities)
        return {"length": length, "start": _snap(float(rng.uniform(0, length)), values, length)}


class TimeMask(Operation):
    """A stretch of time hidden: pictures black, sounds silent.

    Attributes:
        share: range of its length as a share of the sample's.
        mode: "same": hidden in all modalities; "complementary": one of them, drawn, is hidden everywhere else instead, so that
            no moment is hidden in it and the others alike; "independent": each has a stretch of its own.
    """

    kind: Literal["time_mask"] = "time_mask"
    probability: Probability = 0.5
    share: Scale = (0.1, 0.4)
    mode: Literal["same", "complementary", "independent"] = "same"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Length of the sample, and the hidden spans [start, stop] of each modality with a time axis, in seconds."""
        length = _length(values, modalities)
        timed = [name for name, value in values.items() if length_of(value, modalities[name]) is not None]

        def span() -> list[float]:
            hidden = float(rng.uniform(*self.share)) * length
            start = float(rng.uniform(0, length - hidden))
            return [_snap(start, values, length), _snap(start + hidden, values, length, up=True)]

        one = span()
        spans = {name: [span() if self.mode == "independent" else one] for name in timed}
        if self.mode == "complementary":
            if len(timed) < 2:
                raise Skip("one_timed_modality")
            spans[timed[int(rng.integers(len(timed)))]] = [s for s in ([0.0, one[0]], [one[1], length]) if s[0] < s[1]]
        return {"length": length, "spans": spans}


def _length(values: Values, modalities: Mapping[str, Modality]) -> float:
    lengths = [s for name, value in values.items() if (s := length_of(value, modalities[name])) is not None]
    if not lengths:
        raise Skip("no_time_axis")
    return max(lengths)


def _snap(time: float, values: Values, length: float, *, up: bool = False) -> float:
    """The time at which a frame of the first clip is first shown, before `time`, or after it with `up`; without a clip `time`."""
    clip = next((value for value in values.values() if isinstance(value, Clip)), None)
    if clip is None:
        return time
    edges = np.concatenate([[0.0], clip.times[(clip.times > 0) & (clip.times < length)], [length]])
    place = (
        int(np.searchsorted(edges, time, side="left")) if up else int(np.searchsorted(edges, time, side="right")) - 1
    )
    return float(edges[min(place, len(edges) - 1 if up else len(edges) - 2)])


def _samples(entry: Entry, field: Field) -> int:
    samples: int = round(entry["length"] * rate_of(field))
    return samples


def _reverse_sound(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    return fit_sound(wave, _samples(entry, field))[:, ::-1].copy()


def _reverse_clip(clip: Clip, entry: Entry, field: Field) -> Clip:
    # A frame that was shown from t to the next one's u is now shown from length - u: backwards, ends are beginnings.
    ends = np.append(clip.times[1:], entry["length"])
    times = np.maximum(entry["length"] - ends[::-1], 0.0)
    return Clip(clip.frames[::-1].copy(), times, entry["length"])


def _reverse_text(captions: Captions, entry: Entry, field: Field) -> Captions:
    return Captions([swap_order(caption).text for caption in captions], captions.weights)


def _cannot_reverse(captions: Captions, entry: Entry, field: Field) -> str | None:
    if any(map(mentions_speech, captions)):
        return "speech"
    return "ambiguous_caption" if any(swap_order(caption).outcome == "ambiguous" for caption in captions) else None


def _roll_sound(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    return np.roll(fit_sound(wave, _samples(entry, field)), -round(entry["start"] * rate_of(field)), axis=1)


def _roll_clip(clip: Clip, entry: Entry, field: Field) -> Clip:
    start, length = entry["start"], entry["length"]
    first = int(np.searchsorted(clip.times, start, side="left"))
    if first < len(clip.times) and clip.times[first] == start:
        late, shown = clip.times[first:], clip.frames[first:]
    else:  # the beginning of another clip's frame: what is shown then is shown from 0 on
        late, shown = np.append(start, clip.times[first:]), clip.frames[max(0, first - 1) :]
    times = np.concatenate([late - start, np.maximum(clip.times[:first], 0.0) + (length - start)])
    return Clip(np.concatenate([shown, clip.frames[:first]]), times, length)


def _cannot_roll(captions: Captions, entry: Entry, field: Field) -> str | None:
    # Where the end meets the beginning, order and direction turn about.
    return "order_words" if any(swap_order(caption).outcome != "unchanged" for caption in captions) else None


def _mask_sound(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    rate = rate_of(field)
    made = wave.copy()
    for start, stop in entry["spans"].get(field.name, []):
        made[:, round(start * rate) : round(stop * rate)] = 0
    return made


def _mask_clip(clip: Clip, entry: Entry, field: Field) -> Clip:
    frames = clip.frames.copy()
    ends = np.append(clip.times[1:], max(entry["length"], float(clip.times[-1])))
    for start, stop in entry["spans"].get(field.name, []):
        frames[(clip.times < stop) & (ends > start)] = 0
    return Clip(frames, clip.times, clip.seconds)


register(
    "reverse",
    {
        VideoModality: Kernel(_reverse_clip),
        AudioModality: Kernel(_reverse_sound),
        ImageModality: STILL,
        TextModality: Kernel(_reverse_text, _cannot_reverse),
        LabelModality: TIMELESS,
    },
)
register(
    "roll",
    {
        VideoModality: Kernel(_roll_clip),
        AudioModality: Kernel(_roll_sound),
        ImageModality: STILL,
        LabelModality: TIMELESS,
        TextModality: Kernel(lambda value, entry, field: value, _cannot_roll),
    },
)
register(
    "time_mask",
    {
        VideoModality: Kernel(_mask_clip),
        AudioModality: Kernel(_mask_sound),
        ImageModality: STILL,
        TextModality: WHOLE,
        LabelModality: TIMELESS,
    },
)
