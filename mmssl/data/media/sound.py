"""The sound of a video file: decoded samples of a stretch of its audio stream."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from mmssl.data.media.container import extent, first_stream, opened, start_of, zero
from mmssl.data.modality import DecodeError

# Seconds; what begins earlier is decoded from the start of the stream. After a jump AAC's decoder invents other noise in bands of
# which nothing but the loudness is stored; all else is the same to the bit.
_FROM_START = 20
_LEAD_IN = 1  # seconds that are decoded and dropped after a jump: decoders need some frames to settle
_PLANES = 8  # from so many on, PyAV 18.1 reads planes that are not there
_HOLE = Fraction(1, 20)  # seconds by which a time stamp may be off before it means a hole


@contextmanager
def opened_sound(data: bytes) -> Iterator[MediaSound]:
    """The audio stream of a container.

    Raises:
        DecodeError: "missing" (no audio stream), "empty" (nothing in it), "undecodable".
    """
    with opened(data) as container:
        yield MediaSound(container, data)


class MediaSound:
    """The audio stream of an open container, to be read once.

    Attributes:
        samplerate: in Hz, as decoded. channels: how many.
        start: seconds on the timeline at which it begins.
        frames: samples of each channel; where the header is not exact, at least as many as there are.
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
        self._tick = (
            Fraction(self._stream.time_base) * self.samplerate
        )  # samples from one possible time stamp to the next
        self._origin = self._begin(zero(container))
        self.start = self._origin - zero(container)
        self.frames = self._length(data)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` - 1, float32 [channels, stop - start]; fewer where the stream ends. Holes are silent.

        Raises:
            DecodeError: "undecodable": damaged, or a stream that changes its rate or channels.
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
            seconds = start_of(self._stream) + self._stream.duration * Fraction(self._stream.time_base) - self._origin
            return math.ceil(Fraction(seconds) * self.samplerate)
        if self._container.duration:
            seconds = Fraction(self._container.duration, 1_000_000)  # of the longest stream
        else:
            with opened(data) as again:  # the packets are looked at, which would disturb the decoding here
                seconds = Fraction(extent(again, first_stream(again, "audio")).seconds)
        return math.ceil(seconds * self.samplerate) + 4096

    def _begin(self, zero: Fraction) -> Fraction:
        """The time stamp of the first sample in seconds."""
        first, last = self._head[0], self._head[-1]
        stamp = self._seconds(first, start_of(self._stream))
        # What decoders cut from the first frame is rounded a second time where time stamps are coarse; the next one is better.
        better = self._seconds(last, stamp) - Fraction(first.samples, self.samplerate)
        near = 0 < abs(better - stamp) <= 2 * Fraction(self._stream.time_base)
        return better if stamp > zero and last is not first and near else stamp

    def _placed(self, start: int) -> Iterator[tuple[int, Any]]:
        """Frames with the number of their first sample, from one that begins at sample `start` or before."""
        place = 0
        frames: Iterator[Any] = itertools.chain(self._head, self._frames)
        if start > _FROM_START * self.samplerate:
            place, frames = self._jump(Fraction(start, self.samplerate) - _LEAD_IN)
        for frame in frames:
            if frame.sample_rate != self.samplerate or frame.layout.nb_channels != self.channels:
                raise DecodeError("undecodable", "the sound changes its rate or its channels on the way")
            stamp = (
                self._seconds(frame, self._origin + Fraction(place, self.samplerate)) - self._origin
            ) * self.samplerate
            if abs(stamp - place) > _HOLE * self.samplerate:
                place = round(stamp)
            yield place, frame
            place += frame.samples

    def _jump(self, seconds: Fraction) -> tuple[int, Iterator[Any]]:
        """Frames from about that moment on, and the number of the first sample."""
        base = Fraction(self._stream.time_base)
        self._container.seek(math.floor((self._origin + seconds) / base), stream=self._stream)
        frames = self._container.decode(self._stream)
        next(frames, None)  # perhaps cut by the decoder
        first = next(frames, None)
        if first is None:
            return 0, iter(())  # the sound has ended before
        place = (self._seconds(first, self._origin) - self._origin) * self.samplerate
        # Coarse time stamps, as those of Matroska, are made exact by the usual case: all frames after the first are equally long.
        head, size = self._head[0].samples, self._head[-1].samples
        likely = head + size * round((place - head) / size)
        return (likely if abs(likely - place) <= self._tick else round(place)), itertools.chain([first], frames)

    def _seconds(self, frame: Any, otherwise: Fraction) -> Fraction:
        return otherwise if frame.pts is None else Fraction(frame.pts) * Fraction(self._stream.time_base)

    def _wave(self, frame: Any) -> np.ndarray:
        """[channels, samples] float32 of a frame of any format."""
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
    """The same samples, all channels in one plane."""
    import av

    made = av.AudioResampler(format=frame.format.packed.name, layout=frame.layout, rate=frame.sample_rate).resample(
        frame
    )
    assert len(made) == 1
    return made[0]


def _silent(data: bytes) -> DecodeError:
    """What is wrong with an audio stream that gives no samples: a stream that was announced and never written is a mute video."""
    with opened(data) as again:
        if not any(packet.size for packet in again.demux(first_stream(again, "audio"))):
            return DecodeError("missing", "the audio stream has no packet: the video is mute")
    return DecodeError("empty", "no samples in the audio stream")
