"""Time: what values with a time axis have in common.

Every sample has one timeline, in seconds. It begins at the first instant of its earliest stream: a sound that starts late in
its file is preceded by silence, so that equal times mean equal moments in all modalities. A window (start, length) in seconds
names a part of it, and values that were decoded from a window have times that count from the window's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Window = tuple[float, float]
"""(start, length) in seconds on the sample's timeline."""


class Extent(NamedTuple):
    """What a header tells about time, before anything is decoded.

    Attributes:
        seconds: length on the sample's timeline, from 0 to the end of the stream.
        start: when the stream itself begins, at or after 0.
    """

    seconds: float
    start: float = 0.0


@dataclass(frozen=True)
class Clip:
    """Frames of a video, each with its time.

    Attributes:
        frames: uint8 [T, H, W, 3].
        times: float64 [T], seconds at which each frame is first shown, counted from the start of what was decoded; never falls.
        seconds: length of what was decoded; the last frame is shown until then.
    """

    frames: np.ndarray
    times: np.ndarray
    seconds: float
