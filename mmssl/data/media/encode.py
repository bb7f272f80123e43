"""Encode frames and sound to the bytes of a video file: mp4, webm, mkv and mov.

Encoders use one thread, and containers have neither creation time nor random numbers: equal input gives equal bytes on one machine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

_TICKS = 90_000  # time base of frames with variable rate, in ticks a second


class Codecs(NamedTuple):
    """Settings of a container: its name in FFmpeg, and encoders with their options."""

    form: str
    video: str
    video_options: Mapping[str, str]
    audio: str
    audio_options: Mapping[str, str]


# With mbtree or a look-ahead two runs may give different bytes.
_H264 = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0:rc-lookahead=0"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"}
_AAC = {"aac_coder": "fast"}
CONTAINERS = {
    "mp4": Codecs("mp4", "libx264", _H264, "aac", _AAC),
    "mov": Codecs("mov", "libx264", _H264, "aac", _AAC),
    "mkv": Codecs("matroska", "libx264", _H264, "aac", _AAC),
    "webm": Codecs("webm", "libvpx-vp9", _VP9, "libopus", {}),
    "m4a": Codecs("ipod", "libx264", _H264, "aac", _AAC),
}
"""Extension -> codecs. Opus (webm) accepts 8, 12, 16, 24 or 48 kHz, and always decodes to 48 kHz."""


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as a fraction: 29.97 is 30000/1001 as in broadcasting, and 23.976 is 24000/1001."""
    nearby = Fraction(round(float(fps) * 1.001) * 1000, 1001)
    return nearby if abs(float(nearby) - float(fps)) < 0.004 else Fraction(fps).limit_denominator(1001)


def frame_times(seconds: float, fps: float | Fraction) -> np.ndarray:
    """Times [T] of the frames of a clip of constant rate, float64."""
    rate = exact_rate(fps)
    return np.array([float(i / rate) for i in range(max(1, round(seconds * rate)))])


def encode_clip(
    container: str,
    frames: np.ndarray | None,
    sound: np.ndarray | None,
    *,
    fps: float | Fraction | None = None,
    times: np.ndarray | None = None,
    seconds: float | None = None,
    rate: int = 48_000,
    sound_start: float = 0.0,
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Encode frames and/or sound as a media file.

    Args:
        container: one of `CONTAINERS`.
        frames: uint8 [T, H, W, 3], with even H and W where chroma is subsampled; None: no video stream.
        sound: float32 [samples, channels] in [-1, 1]; None: no audio stream.
        fps: constant frame rate; or
        times: [T] seconds at which each frame is first shown, rising.
        seconds: with `times`, end of the last frame; None: it lasts as long as the previous one.
        rate: samples a second, in Hz.
        sound_start: start time of the sound in seconds.
        pixel_format: FFmpeg's pixel format.
        options: options of the video encoder that extend or replace the defaults.

    Raises:
        ValueError: an unknown container, nothing to encode, or both or neither of `fps` and `times`.
    """
    import av

    if container not in CONTAINERS or (frames is None and sound is None):
        raise ValueError(f"got container {container!r}, wanted one of {list(CONTAINERS)}, and frames or a sound")
    if frames is not None and (fps is None) == (times is None):
        raise ValueError("got both or neither of `fps` and `times`, wanted one of them for the frames")
    codecs = CONTAINERS[container]
    file = io.BytesIO()
    muxing = {"fflags": "+bitexact"}
    if codecs.form in ("mp4", "mov", "ipod"):
        muxing["movie_timescale"] = str(_TICKS)  # without it streams begin at whole milliseconds
    with av.open(file, "w", format=codecs.form, options=muxing) as out:
        video = None if frames is None else _video_stream(out, codecs, frames, fps, pixel_format, options or {})
        audio = None if sound is None else _audio_stream(out, codecs, sound.shape[1], rate)
        if frames is not None:
            _encode_frames(out, video, frames, fps, times, seconds)
        if sound is not None:
            _encode_sound(out, audio, sound, rate, sound_start)
    return file.getvalue()


def _video_stream(
    out: Any,
    codecs: Codecs,
    frames: np.ndarray,
    fps: float | Fraction | None,
    pixel_format: str,
    options: Mapping[str, str],
) -> Any:
    rate = exact_rate(30 if fps is None else fps)
    stream = out.add_stream(codecs.video, rate=rate, options={**codecs.video_options, **options})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = Fraction(1, _TICKS) if fps is None else 1 / rate
    stream.codec_context.thread_count = 1
    return stream


def _audio_stream(out: Any, codecs: Codecs, channels: int, rate: int) -> Any:
    stream = out.add_stream(codecs.audio, rate=rate, options=dict(codecs.audio_options))
    stream.layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
    stream.codec_context.thread_count = 1
    return stream


def _encode_frames(
    out: Any,
    stream: Any,
    frames: np.ndarray,
    fps: float | Fraction | None,
    times: np.ndarray | None,
    seconds: float | None,
) -> None:
    import av

    base = Fraction(1, _TICKS) if fps is None else 1 / exact_rate(fps)
    if times is None:
        ticks = np.arange(len(frames) + 1)
    else:
        last = float(times[-1])
        end = seconds if seconds is not None else 2 * last - float(times[-2]) if len(times) > 1 else last + 1 / 30
        ticks = np.rint(np.append(times, end) * _TICKS).astype(np.int64)
    lengths = dict(zip(ticks[:-1].tolist(), np.diff(ticks).tolist(), strict=True))
    packets = []
    for pixels, tick in zip(frames, lengths, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = tick, base
        packets += stream.encode(frame)
    for packet in (*packets, *stream.encode()):
        packet.duration = lengths[packet.pts]  # encoders drop it
        out.mux(packet)


def _encode_sound(out: Any, stream: Any, sound: np.ndarray, rate: int, start: float) -> None:
    import av

    packed = np.ascontiguousarray(sound, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=stream.layout.name)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate)
    out.mux(stream.encode(frame))
    out.mux(stream.encode())
