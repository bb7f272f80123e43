"""Decode video frames: those on screen within a window, selected by their time stamps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.media.container import (
    first_stream,
    open_container,
    stream_extent,
    stream_start,
    timeline_zero,
    usual_step,
)
from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Clip, Extent, Window

_HALF_DEGREE = math.tan(math.radians(0.5))
_BACK = (0, 1, 10, 10**9)  # seconds before the window to seek a key frame from, until one is early enough

_SLIVER = Fraction(1, 1_000_000)  # seconds; frames shown for less in a window are not in it: windows are floats


class ShownFrame(NamedTuple):
    """A frame that is on screen from `begin` until `end`, in seconds from the start of the window."""

    picture: Any
    begin: Fraction
    end: Fraction


Timed = Callable[[Any, Any, Fraction], Iterator[tuple[Any, Fraction]]]
"""(container, stream, origin) -> frames with their times, in the order of times from the container's position."""


class VideoFigures(NamedTuple):
    """Figures of a whole video: size of the frames in pixels as they are shown, their number, and the length in seconds."""

    width: int
    height: int
    frames: int
    seconds: float


def video_figures(data: bytes, max_pixels: int) -> VideoFigures:
    """Decode and count all frames of a video, without keeping them.

    Raises:
        DecodeError: see `decode_video`.
    """
    with open_container(data) as container:
        stream = first_stream(container, "video")
        check_frame_size(stream, max_pixels)
        count, end = 0, Fraction(0)
        width, height = stream.codec_context.width, stream.codec_context.height
        for frame in timed_frames(container, stream, Fraction(0)):
            if not count and _display_matrix(frame.picture)[0] == 0:
                width, height = height, width
            count, end = count + 1, frame.end
        if not count:
            raise DecodeError("empty", "no frame in the video")
        return VideoFigures(width, height, count, float(end))


def video_extent(data: bytes, max_pixels: int) -> Extent:
    """Start and end of the video stream.

    Raises:
        DecodeError: see `decode_video`.
    """
    with open_container(data) as container:
        stream = first_stream(container, "video")
        check_frame_size(stream, max_pixels)
        return stream_extent(container, stream)


def decode_video(
    data: bytes, window: Window | None = None, *, fps: float | None = None, max_pixels: int, max_bytes: int
) -> Clip:
    """Decode the frames that are on screen within a window.

    The first frame is usually on screen before the window begins, and has time 0. If the video begins within the window, the
    first frame has its start time.

    Args:
        data: the file.
        window: (start, length) in seconds; None: the whole video.
        fps: keep only frames that are on screen at one of the times 0, 1 / fps, 2 / fps, ... of the window; None: keep all.
        max_pixels: limit for one frame. max_bytes: limit for all kept frames, 3 bytes a pixel.

    Raises:
        DecodeError: "missing" (no video stream), "undecodable" (foreign, damaged, cut short), "empty" (no frame in the window),
            "too_large" (more pixels or bytes; checked before decoding if the header has the sizes).
    """
    from av.video.reformatter import VideoReformatter

    start, length = (Fraction(0), None) if window is None else (Fraction(max(0.0, window[0])), Fraction(window[1]))
    with open_container(data) as container:
        stream = first_stream(container, "video")
        pixels = check_frame_size(stream, max_pixels)
        limit = max_bytes // (3 * pixels)
        check_frame_count(container, stream, start, length, fps, limit)
        frames: list[np.ndarray] = []
        times: list[float] = []
        end = Fraction(0)
        converter = VideoReformatter()  # one for all frames: creating it costs more than a conversion
        for frame, keep in select_frames(timed_frames(container, stream, start), length, fps):
            end = frame.end
            if not keep:
                continue
            if frame.picture.width * frame.picture.height > pixels:
                raise DecodeError("undecodable", "got frames that are larger than in the header")
            if len(frames) == limit:
                raise too_long(f"more than {limit}", pixels, max_bytes)
            frames.append(_to_rgb(frame.picture, converter))
            times.append(float(max(frame.begin, Fraction(0))))
        if not frames:
            raise DecodeError("empty", f"no frame in {window or 'the video'}")
        if len({frame.shape for frame in frames}) > 1:
            raise DecodeError("undecodable", "got frames of several sizes, wanted one size")
    return Clip(np.stack(frames), np.array(times), float(end))


def timed_frames(container: Any, stream: Any, start: Fraction, timed: Timed | None = None) -> Iterator[ShownFrame]:
    """Iterate over frames with their times, from one on screen at or before `start` to the end of the video.

    Args:
        container, stream: opened and not yet read.
        start: in seconds on the sample's timeline.
        timed: source of frames with times; None: decoding.
    """
    origin, base = timeline_zero(container), Fraction(stream.time_base)
    timed = timed or _timed
    decoded = timed(container, stream, origin + start)
    first = None
    for back in _BACK if start > 0 else ():
        container.seek(math.floor((origin + start - back) / base), stream=stream)
        decoded = timed(container, stream, origin + start)
        first = next(decoded, None)
        if (first is not None and first[1] <= _SLIVER) or back >= start:
            break
    picture, begin = first or next(decoded, (None, Fraction(0)))
    if picture is None:
        return
    for after, moment in decoded:
        if moment > begin:  # of two frames with equal times the later is shown
            yield ShownFrame(picture, begin, moment)
        picture, begin = after, max(moment, begin)
    end = begin + (Fraction(picture.duration or 0) * base or usual_step(stream))
    announced = stream_start(stream) + (stream.duration or 0) * base - origin - start
    yield ShownFrame(picture, begin, announced if announced > begin else end)


def _timed(container: Any, stream: Any, origin: Fraction) -> Iterator[tuple[Any, Fraction]]:
    """Decode frames from the container's position on, each with its time."""
    for picture in container.decode(stream):
        stamp = picture.pts if picture.pts is not None else picture.dts
        if stamp is None:
            raise DecodeError("undecodable", "got frames without time stamps")
        yield picture, stamp * Fraction(stream.time_base) - origin


def select_frames(
    frames: Iterator[ShownFrame], length: Fraction | None, fps: float | None
) -> Iterator[tuple[ShownFrame, bool]]:
    """Select the frames on screen in the window, with times clipped to it, and whether `fps` keeps them; the first is kept."""
    first = True
    for frame in frames:
        if length is not None and frame.begin >= length - _SLIVER:
            return
        if frame.end > _SLIVER:
            frame = frame if length is None else frame._replace(end=min(frame.end, length))
            yield frame, first or fps is None or _has_instant(max(frame.begin, Fraction(0)), frame.end, fps)
            first = False


def _has_instant(begin: Fraction, end: Fraction, fps: float) -> bool:
    return math.ceil(begin * Fraction(fps)) < end * Fraction(fps)


def is_mirrored(picture: Any) -> bool:
    """Whether the display matrix of a frame mirrors it, with or without a rotation."""
    a, b, c, d = _display_matrix(picture)
    return a * d < b * c


def _to_rgb(picture: Any, converter: Any) -> np.ndarray:
    """Convert to RGB [H, W, 3] uint8, turned and mirrored by the display matrix of the frame."""
    pixels: np.ndarray = converter.reformat(picture, format="rgb24", threads=1).to_ndarray()
    a, b, c, d = _display_matrix(picture)
    if b or c:
        pixels, down, right = pixels.swapaxes(0, 1), b, c
    else:
        down, right = d, a
    return np.ascontiguousarray(pixels[::down, ::right])


def _display_matrix(picture: Any) -> tuple[int, int, int, int]:
    """Signs (a, b, c, d) of a frame's display matrix: the pixel (x, y) is shown at (ax + cy, bx + dy), up to an offset.

    Only the direction counts, as in FFmpeg: scales and offsets are ignored, and a matrix without an inverse means no change.

    Raises:
        DecodeError: "undecodable": it turns by no multiple of 90 degrees (up to half a degree), or shears.
    """
    stored = picture.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(bytes(stored), dtype=np.int32)[:5])
    if a * d == b * c:
        return 1, 0, 0, 1
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, crossed) > _HALF_DEGREE * max(straight, crossed):
        raise DecodeError("undecodable", f"got frames turned by {picture.rotation} degrees, wanted a multiple of 90")
    signs = [1 if entry > 0 else -1 for entry in (a, b, c, d)]
    return (signs[0], 0, 0, signs[3]) if straight > crossed else (0, signs[1], signs[2], 0)


def check_frame_size(stream: Any, max_pixels: int) -> int:
    """Pixels of a frame by the header, checked against `max_pixels`.

    Raises:
        DecodeError: "undecodable" (no size in the header), "too_large".
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise DecodeError("undecodable", "the video stream has no frame size in its header")
    if width * height > max_pixels:
        raise DecodeError(
            "too_large", f"got frames of {width} x {height}, wanted at most {max_pixels} pixels (`max_pixels`)"
        )
    return int(width * height)


def check_frame_count(
    container: Any, stream: Any, start: Fraction, length: Fraction | None, fps: float | None, limit: int
) -> None:
    """Refuse a window with too many frames by the header, before decoding.

    Raises:
        DecodeError: "too_large".
    """
    whole = (stream.duration or 0) * Fraction(stream.time_base) or Fraction(container.duration or 0, 1_000_000)
    seconds = max(Fraction(0), whole - start) if length is None else min(length, whole - start)
    rate = 1 / usual_step(stream) if fps is None else min(Fraction(fps), 1 / usual_step(stream))
    if seconds * rate > limit + 2:
        width, height = stream.codec_context.width, stream.codec_context.height
        raise too_long(f"about {round(seconds * rate)}", width * height, limit * 3 * width * height)


def too_long(frames: str, pixels: int, max_bytes: int) -> DecodeError:
    """The error for frames of more than `max_bytes`."""
    return DecodeError(
        "too_large",
        f"got {frames} frames of {pixels} pixels, wanted at most {max_bytes} bytes in all (`max_bytes`): shorten the window, "
        "or keep fewer frames a second (`fps`)",
    )


_REORDERED = 2  # maximum seconds by which packets without decoding time may precede others that are shown earlier
_NUDGE = 1e-9  # seconds, so that rounding cannot select the previous frame


def frame_start(data: bytes, time: float) -> float:
    """Start time, in seconds on the sample's timeline, of the frame on screen at `time`.

    It is `time` itself before the first frame, and a nanosecond late otherwise: a window that starts there begins with that frame.

    Args:
        data: the file.
        time: seconds on its timeline.

    Raises:
        DecodeError: "missing" (no video stream), "undecodable".
    """
    moment = Fraction(time)
    with open_container(data) as container:
        stream = first_stream(container, "video")
        origin, base = timeline_zero(container), Fraction(stream.time_base)
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
