"""When the frame began that is on screen at a moment: read from the packets of a video file, of which none is decoded."""

from __future__ import annotations

import math
from fractions import Fraction

from mmssl.data.media import first_stream, opened, zero

_REORDERED = (
    2  # seconds by which packets may come before others that are shown earlier, where they have no time of decoding
)
_NUDGE = 1e-9  # seconds, so that a rounded number cannot mean the frame before


def frame_start(data: bytes, time: float) -> float:
    """The moment, in seconds on the sample's timeline, at which the frame began that is on screen at `time`.

    It is `time` itself before the first frame, and a nanosecond late otherwise: a window from there on begins with that frame.

    Args:
        data: the file.
        time: seconds on its timeline.

    Raises:
        DecodeError: "missing" (no video stream), "undecodable".
    """
    moment = Fraction(time)
    with opened(data) as container:
        stream = first_stream(container, "video")
        origin, base = zero(container), Fraction(stream.time_base)
        container.seek(math.floor((origin + moment) / base), stream=stream)  # to the key frame before it
        found: Fraction | None = None
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            begin = packet.pts * base - origin
            if begin <= moment and (found is None or begin > found):
                found = begin
            if (packet.dts * base - origin if packet.dts is not None else begin - _REORDERED) > moment:
                break
    return time if found is None else max(0.0, float(found)) + _NUDGE
