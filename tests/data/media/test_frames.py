"""Which frame is on screen at a moment: by time stamps, in any order of packets, from the very moment that a frame begins."""

from __future__ import annotations

import io

import numpy as np
import pytest

from mmssl.data.media.encode import encode_clip
from mmssl.data.media.frames import frame_start

COUNT, FPS = 48, 16.0  # sixteenths are exact in floats and in the time stamps of mp4
B_FRAMES = {"x264-params": "b-adapt=0:bframes=3:scenecut=0:keyint=24"}


def shuffled(container: str) -> bytes:
    """A file with two key frames whose packets are stored in another order than frames are shown in."""
    frames = np.repeat(np.arange(COUNT, dtype=np.uint8), 32 * 32 * 3).reshape(COUNT, 32, 32, 3) * 5
    return encode_clip(container, frames, None, fps=FPS, options=B_FRAMES)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_the_start_of_a_frame_is_found_among_packets_out_of_order(container: str) -> None:
    import av

    data = shuffled(container)
    with av.open(io.BytesIO(data)) as file:
        stamps = [packet.pts for packet in file.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    tick = 0.0 if container != "mkv" else 0.00051  # Matroska counts in milliseconds
    for number in range(COUNT):
        begin = number / FPS
        for moment in (begin + tick, begin + 0.03, begin + 0.0615 - tick):
            assert frame_start(data, moment) == pytest.approx(begin, abs=tick + 2e-9)


def test_a_frame_is_on_screen_from_the_very_moment_it_begins() -> None:
    data = shuffled("mp4")
    for number in range(1, COUNT):
        begin = number / FPS
        assert frame_start(data, begin) == pytest.approx(begin, abs=2e-9)
        assert frame_start(data, np.nextafter(begin, 0.0)) == pytest.approx(begin - 1 / FPS, abs=2e-9)
