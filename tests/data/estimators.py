"""What can be told of a moving digit scene from its frames, its sound and its caption alone: side, places, moments.

The estimators take decoded values and views alike, know no latent, and are symmetric in time: an event is where its middle is,
so that a reversed clip has the mirrored events.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Beep(NamedTuple):
    """A beep: when its middle is heard, in seconds, and from where, as a fraction of the width (0: left, 1: right)."""

    time: float
    x: float


def luma(frames: np.ndarray) -> np.ndarray:
    """float64 [T, H, W] of uint8 [T, H, W, 3] or [T, 3, H, W]."""
    planes = frames if frames.shape[1] == 3 and frames.shape[-1] != 3 else frames.transpose(0, 3, 1, 2)
    return np.einsum("tchw,c->thw", planes.astype(np.float64), np.array([0.299, 0.587, 0.114]))


def ink(frames: np.ndarray) -> np.ndarray:
    """How far each pixel is from the paper, noise cut off, [T, H, W]."""
    grey = luma(frames)
    distance = np.abs(grey - np.median(grey))
    return np.where(distance > 0.15 * np.percentile(distance, 99.5), distance, 0.0)


def positions(frames: np.ndarray) -> np.ndarray:
    """[T], x of the digit in each frame as a fraction of the width; NaN where there is no ink."""
    return positions_of(ink(frames))


def positions_of(strokes: np.ndarray) -> np.ndarray:
    """`positions` of frames with this ink."""
    columns = strokes.sum(1)  # [T, W]
    mass = columns.sum(1)
    centres = (np.arange(columns.shape[1]) + 0.5) / columns.shape[1]
    return np.where(mass > 0, columns @ centres / np.maximum(mass, 1e-9), np.nan)


def flashes(frames: np.ndarray, times: np.ndarray, seconds: float) -> list[float]:
    """Seconds of the middle of each flash.

    Args:
        times: [T], when each frame is first shown.
        seconds: until when the last one is.
    """
    return flashes_of(ink(frames), times, seconds)


def flashes_of(strokes: np.ndarray, times: np.ndarray, seconds: float) -> list[float]:
    """`flashes` of frames with this ink."""
    mass = strokes.sum((1, 2))
    usual = float(np.percentile(mass, 25))
    excess = np.maximum(mass - 1.08 * usual, 0.0)
    ends = np.append(times[1:], max(seconds, float(times[-1])))
    middles, lengths = (times + ends) / 2, ends - times
    found = []
    for part in _runs(excess > 0.08 * excess.max(), 1):
        weights = excess[part] * lengths[part]
        if excess[part].max() > 0.25 * excess.max() > 0:
            found.append(float((weights * middles[part]).sum() / weights.sum()))
    return found


def beeps(sound: np.ndarray, rate: int) -> list[Beep]:
    """All beeps of a sound [2, samples], int16 or float, in the order of time."""
    wave = np.asarray(sound, dtype=np.float64)
    width = max(1, round(0.005 * rate))
    power = (wave**2).sum(0)
    smooth = np.convolve(power, np.ones(width) / width, mode="same")
    found = []
    for part in _runs(smooth > 0.05 * smooth.max(), round(0.03 * rate)):
        if part.stop - part.start < 0.02 * rate or smooth.max() == 0:
            continue
        left, right = (wave[:, part] ** 2).sum(1)
        middle = float((power[part] * (np.arange(part.start, part.stop) + 0.5)).sum() / power[part].sum())
        found.append(Beep(middle / rate, math.atan2(math.sqrt(right), math.sqrt(left)) * 2 / math.pi))
    return found


def caption_side(caption: str) -> str | None:
    """ "left" or "right" where the caption says a side, "leftward" or "rightward" where it says a direction."""
    words = caption.replace(",", " ").split()
    sides = [word for word in words if word in ("left", "right")]
    if not sides:
        return None
    moving = {"moves", "moving"} & set(words)
    return f"{sides[-1]}ward" if moving else sides[0]


def seen_side(frames: np.ndarray) -> str:
    """What a caption of these frames should say, in the words of `caption_side`: a digit that crosses the picture moves."""
    x = positions(frames)
    x = x[np.isfinite(x)]
    part = max(1, len(x) // 5)
    first, last = float(np.median(x[:part])), float(np.median(x[-part:]))
    if (first - 0.5) * (last - 0.5) < 0:
        return "rightward" if last > first else "leftward"
    return "left" if float(np.median(x)) < 0.5 else "right"


def _runs(flags: np.ndarray, gap: int) -> list[slice]:
    """Stretches of true values; those at most `gap` - 1 false ones apart are one."""
    places = np.flatnonzero(flags)
    if not len(places):
        return []
    cuts = np.flatnonzero(np.diff(places) > max(1, gap))
    starts, stops = np.append(places[0], places[cuts + 1]), np.append(places[cuts], places[-1]) + 1
    return [slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]
