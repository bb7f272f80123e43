"""The timeline of a sample: windows, extents and clips of frames, in seconds.

Every sample has one timeline, in seconds. It begins at the first instant of its earliest stream: a sound that starts late in
its file is preceded by silence, so that equal times mean equal moments in all modalities. A window is (start, length) in
seconds; values decoded from a window have times relative to its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Window = tuple[float, float]
"""(start, length) in seconds on the sample's timeline."""


class Extent(NamedTuple):
    """Start and length of a stream by its header, before decoding.

    Attributes:
        seconds: length on the sample's timeline, from 0 to the end of the stream.
        start: start time of the stream, at least 0.
    """

    seconds: float
    start: float = 0.0


@dataclass(frozen=True)
class Clip:
    """Frames of a video, each with its time.

    Attributes:
        frames: uint8 [T, H, W, 3].
        times: float64 [T], seconds at which each frame is first shown, relative to the start of the decoded window; non-decreasing.
        seconds: length of the decoded window; the last frame is shown until then.
    """

    frames: np.ndarray
    times: np.ndarray
    seconds: float
