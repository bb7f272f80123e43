"""Synchronized augmentation kernels for videos, `Clip`s."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Operand, identity, window_of
from mmssl.data.modalities.kernels.image import blend, crop_raster, reverse_axis
from mmssl.data.timeline import Clip


def cut_clip(clip: Clip, start: float, length: float) -> Clip:
    """Cut a clip to `length` seconds from `start`; times are relative to `start`."""
    first = max(0, int(np.searchsorted(clip.times, start, side="right")) - 1)
    stop = max(first + 1, int(np.searchsorted(clip.times, start + length, side="left")))
    return Clip(
        clip.frames[first:stop], np.maximum(clip.times[first:stop] - start, 0.0), min(length, clip.seconds - start)
    )


def _window_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    return cut_clip(clip, *window_of(entry, field.name))


def _speed_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    factor = float(Fraction(entry["factor"]))
    return Clip(clip.frames, clip.times / factor, clip.seconds / factor)


def _crop_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    return Clip(crop_raster(clip.frames, entry, field), clip.times, clip.seconds)


def _mirror_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    return Clip(reverse_axis(clip.frames, 2), clip.times, clip.seconds)


def _mix_clips(clip: Clip, entry: Entry, field: Operand) -> Clip:
    other = field.partner
    shown = np.maximum(np.searchsorted(other.times, clip.times, side="right") - 1, 0)  # at each of our moments
    return Clip(blend(clip.frames, other.frames[shown], entry["weight"]), clip.times, clip.seconds)


def _reverse_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    # A frame that was shown from t to u is now shown from length - u to length - t.
    ends = np.append(clip.times[1:], entry["length"])
    times = np.maximum(entry["length"] - ends[::-1], 0.0)
    return Clip(clip.frames[::-1].copy(), times, entry["length"])


def _roll_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    start, length = entry["start"], entry["length"]
    first = int(np.searchsorted(clip.times, start, side="left"))
    if first < len(clip.times) and clip.times[first] == start:
        late, shown = clip.times[first:], clip.frames[first:]
    else:  # the cut is at a frame of another clip: the frame on screen then is shown from 0 on
        late, shown = np.append(start, clip.times[first:]), clip.frames[max(0, first - 1) :]
    times = np.concatenate([late - start, np.maximum(clip.times[:first], 0.0) + (length - start)])
    return Clip(np.concatenate([shown, clip.frames[:first]]), times, length)


def _mask_clip(clip: Clip, entry: Entry, field: Operand) -> Clip:
    frames = clip.frames.copy()
    ends = np.append(clip.times[1:], max(entry["length"], float(clip.times[-1])))
    for start, stop in entry["spans"].get(field.name, []):
        frames[(clip.times < stop) & (ends > start)] = 0
    return Clip(frames, clip.times, clip.seconds)


CLIPS = {
    "time_crop": Kernel(_window_clip),
    "speed": Kernel(_speed_clip),
    "reverse": Kernel(_reverse_clip),
    "roll": Kernel(_roll_clip),
    "time_mask": Kernel(_mask_clip),
    "flip": Kernel(_mirror_clip),
    "crop": Kernel(_crop_clip),
    "mixup": Kernel(_mix_clips),
    "gain": identity("only sounds have a level"),
    "negative": identity("negatives change the sound or the caption, and keep the picture"),
}
