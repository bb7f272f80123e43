"""Decode the audio stream of a video file: samples of a window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from mmssl.data.media.container import first_stream, open_container, stream_extent, stream_start, timeline_zero
from mmssl.data.modality import DecodeError

# Seconds; earlier windows are decoded from the start of the stream. After a seek AAC's decoder makes other noise in bands of which
# only the loudness is stored; all else is bit-equal.
_FROM_START = 20
_LEAD_IN = 1  # seconds to decode and drop after a seek: decoders need some frames to settle
_PLANES = 8  # from this number of planes on, PyAV 18.1 reads beyond the last one
_HOLE = Fraction(1, 20)  # seconds of error in a time stamp above which it means a gap


@contextmanager
def opened_sound(data: bytes) -> Iterator[MediaSound]:
    """Open the audio stream of a container.

    Raises:
        DecodeError: "missing" (no audio stream), "empty" (no samples), "undecodable".
    """
    with open_container(data) as container:
        yield MediaSound(container, data)


class MediaSound:
    """The audio stream of an open container; read it once only.

    Attributes:
        samplerate: in Hz, as decoded. channels: their number.
        start: start of the stream on the timeline, in seconds.
        frames: samples of each channel; an upper bound if the header is not exact.
    """

    def __init__(self, container: Any, data: bytes) -> None:
        self._container = container
        self._stream = first_stream(container, "audio")
        self._frames = container.decode(self._stream)
        self._head = list(itertools.islice(self._frames, 2))
        if not self._head:
            raise _silent(data)
        first = self._head[0]
        self.samplerate = int(first.sample_rate)
        self.channels = int(first.layout.nb_channels)
        self._tick = Fraction(self._stream.time_base) * self.samplerate  # samples between two consecutive time stamps
        # As in FFmpeg, although Matroska rounds time stamps to milliseconds.
        self._origin = self._seconds(first, stream_start(self._stream))
        self.start = self._origin - timeline_zero(container)
        self.frames = self._length(data)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` - 1, float32 [channels, stop - start]; fewer at the end of the stream. Gaps are silent.

        Raises:
            DecodeError: "undecodable": damaged, or the rate or channels change within the stream.
        """
        out = np.zeros((self.channels, stop - start), dtype=np.float32)
        end = start
        for index, frame in self._placed(start):
            if index >= stop:
                break
            begin, end = max(index, start), min(index + frame.samples, stop)
            if end > begin:
                out[:, begin - start : end - start] = self._wave(frame)[:, begin - index : end - index]
        return out[:, : max(0, end - start)]

    def _length(self, data: bytes) -> int:
        if self._stream.duration:
            seconds = (
                stream_start(self._stream) + self._stream.duration * Fraction(self._stream.time_base) - self._origin
            )
            return math.ceil(Fraction(seconds) * self.samplerate)
        if self._container.duration:
            seconds = Fraction(self._container.duration, 1_000_000)  # of the longest stream
        else:
            with open_container(data) as again:  # reading the packets would disturb the decoding here
                seconds = Fraction(stream_extent(again, first_stream(again, "audio")).seconds)
        return math.ceil(seconds * self.samplerate) + 4096

    def _placed(self, start: int) -> Iterator[tuple[int, Any]]:
        """Iterate over frames with the number of their first sample, from one that begins at sample `start` or before."""
        place = 0
        frames: Iterator[Any] = itertools.chain(self._head, self._frames)
        if start > _FROM_START * self.samplerate:
            place, frames = self._jump(Fraction(start, self.samplerate) - _LEAD_IN)
        for frame in frames:
            if frame.sample_rate != self.samplerate or frame.layout.nb_channels != self.channels:
                raise DecodeError("undecodable", "the sample rate or the channels change within the stream")
            stamp = (
                self._seconds(frame, self._origin + Fraction(place, self.samplerate)) - self._origin
            ) * self.samplerate
            if abs(stamp - place) > _HOLE * self.samplerate:
                place = round(stamp)
            yield place, frame
            place += frame.samples

    def _jump(self, seconds: Fraction) -> tuple[int, Iterator[Any]]:
        """Seek: frames from about `seconds` on, and the number of their first sample."""
        base = Fraction(self._stream.time_base)
        self._container.seek(math.floor((self._origin + seconds) / base), stream=self._stream)
        frames = self._container.decode(self._stream)
        next(frames, None)  # may be cut by the decoder
        first = next(frames, None)
        if first is None:
            return 0, iter(())  # the stream ends before
        place = (self._seconds(first, self._origin) - self._origin) * self.samplerate
        # Make coarse time stamps (Matroska) exact: usually all frames after the first are equally long.
        head, size = self._head[0].samples, self._head[-1].samples
        likely = head + size * round((place - head) / size)
        return (likely if abs(likely - place) <= self._tick else round(place)), itertools.chain([first], frames)

    def _seconds(self, frame: Any, otherwise: Fraction) -> Fraction:
        return otherwise if frame.pts is None else Fraction(frame.pts) * Fraction(self._stream.time_base)

    def _wave(self, frame: Any) -> np.ndarray:
        """Convert a frame of any sample format to float32 [channels, samples]."""
        if self.channels >= _PLANES and frame.format.is_planar:
            frame = _interleaved(frame)
        values: np.ndarray = frame.to_ndarray()
        if not frame.format.is_planar:
            values = values.reshape(-1, self.channels).T
        if values.dtype == np.uint8:
            values, scale = values.astype(np.float32) - 128, 128.0
        else:
            scale = 1.0 if values.dtype.kind == "f" else 2.0 ** (8 * values.dtype.itemsize - 1)
        wave: np.ndarray = (values / scale).astype(np.float32)
        return wave


def _interleaved(frame: Any) -> Any:
    """Convert a planar frame to interleaved samples in one plane."""
    import av

    made = av.AudioResampler(format=frame.format.packed.name, layout=frame.layout, rate=frame.sample_rate).resample(
        frame
    )
    assert len(made) == 1
    return made[0]


def _silent(data: bytes) -> DecodeError:
    """The error for an audio stream without samples: one without packets counts as a missing stream."""
    with open_container(data) as again:
        if not any(packet.size for packet in again.demux(first_stream(again, "audio"))):
            return DecodeError("missing", "the audio stream has no packets: the video has no sound")
    return DecodeError("empty", "no samples in the audio stream")
