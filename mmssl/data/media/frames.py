"""The pictures of a video file: the frames that are on screen within a window, by their time stamps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.media.container import extent, first_stream, opened, start_of, usual_step, zero
from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Clip, Extent, Window

_BACK = (0, 1, 10, 10**9)  # seconds before the window from which a key frame is looked for, until one is early enough

_SLIVER = Fraction(1, 1_000_000)  # seconds; what is seen shorter in a window is not in it: windows are given in floats


class Shown(NamedTuple):
    """A frame, and when it is on screen, in seconds from the start of the window: from `begin` until `end`."""

    picture: Any
    begin: Fraction
    end: Fraction


Timed = Callable[[Any, Any, Fraction], Iterator[tuple[Any, Fraction]]]
"""(container, stream, origin) -> pictures in the order of their times from where the container stands, with their times."""


class VideoFigures(NamedTuple):
    """What a whole video holds: size of the frames in pixels, how many, and the length in seconds."""

    width: int
    height: int
    frames: int
    seconds: float


def video_figures(data: bytes, max_pixels: int) -> VideoFigures:
    """Decode all frames of a video, one after the other, and count them.

    Raises:
        DecodeError: see `decode_video`.
    """
    with opened(data) as container:
        stream = first_stream(container, "video")
        check_size(stream, max_pixels)
        count, end = 0, Fraction(0)
        for frame in shown(container, stream, Fraction(0)):
            count, end = count + 1, frame.end
        if not count:
            raise DecodeError("empty", "no frame in the video")
        return VideoFigures(stream.codec_context.width, stream.codec_context.height, count, float(end))


def video_extent(data: bytes, max_pixels: int) -> Extent:
    """When the pictures begin and end.

    Raises:
        DecodeError: see `decode_video`.
    """
    with opened(data) as container:
        stream = first_stream(container, "video")
        check_size(stream, max_pixels)
        return extent(container, stream)


def decode_video(
    data: bytes, window: Window | None = None, *, fps: float | None = None, max_pixels: int, max_bytes: int
) -> Clip:
    """Decode the frames that are on screen within a window.

    The first one is usually on screen before the window begins, and has time 0. A video that begins within the window has its
    first frame at that moment.

    Args:
        data: the file.
        window: (start, length) in seconds; None: everything.
        fps: keep only frames that are on screen at one of the instants 0, 1 / fps, 2 / fps, ... of the window; None: keep all.
        max_pixels: of one frame. max_bytes: of all frames that are kept, 3 for a pixel.

    Raises:
        DecodeError: "missing" (no video stream), "undecodable" (foreign, damaged, cut short), "empty" (no frame in the window),
            "too_large" (more pixels or bytes, by the header where it says so; nothing is decoded then).
    """
    from av.video.reformatter import VideoReformatter

    start, length = (Fraction(0), None) if window is None else (Fraction(max(0.0, window[0])), Fraction(window[1]))
    with opened(data) as container:
        stream = first_stream(container, "video")
        pixels = check_size(stream, max_pixels)
        limit = max_bytes // (3 * pixels)
        check_count(container, stream, start, length, fps, limit)
        frames: list[np.ndarray] = []
        times: list[float] = []
        end = Fraction(0)
        converter = VideoReformatter()  # one for all frames: to begin anew costs more than to convert
        for frame, keep in chosen(shown(container, stream, start), length, fps):
            end = frame.end
            if not keep:
                continue
            if frame.picture.width * frame.picture.height > pixels:
                raise DecodeError("undecodable", "frames that are larger than the header says")
            if len(frames) == limit:
                raise too_long(f"more than {limit}", pixels, max_bytes)
            frames.append(_to_rgb(frame.picture, converter))
            times.append(float(max(frame.begin, Fraction(0))))
        if not frames:
            raise DecodeError("empty", f"no frame in {window or 'the video'}")
        if len({frame.shape for frame in frames}) > 1:
            raise DecodeError("undecodable", "frames of several sizes in one video")
    return Clip(np.stack(frames), np.array(times), float(end))


def shown(container: Any, stream: Any, start: Fraction, timed: Timed | None = None) -> Iterator[Shown]:
    """Frames with their times from the one that is on screen at `start`, or before it, to the end.

    Args:
        container, stream: opened and not read yet.
        start: in seconds on the sample's timeline.
        timed: what gives pictures; None: decoding.
    """
    origin, base = zero(container), Fraction(stream.time_base)
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
        if moment > begin:  # of two frames at one instant the later is seen
            yield Shown(picture, begin, moment)
        picture, begin = after, max(moment, begin)
    end = begin + (Fraction(picture.duration or 0) * base or usual_step(stream))
    announced = start_of(stream) + (stream.duration or 0) * base - origin - start
    yield Shown(picture, begin, announced if announced > begin else end)


def _timed(container: Any, stream: Any, origin: Fraction) -> Iterator[tuple[Any, Fraction]]:
    """Frames from here on, each with its time."""
    for picture in container.decode(stream):
        stamp = picture.pts if picture.pts is not None else picture.dts
        if stamp is None:
            raise DecodeError("undecodable", "frames without time stamps")
        yield picture, stamp * Fraction(stream.time_base) - origin


def chosen(frames: Iterator[Shown], length: Fraction | None, fps: float | None) -> Iterator[tuple[Shown, bool]]:
    """Those of which something is seen in the window, with ends cut to it, and whether they are kept; the first is."""
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


def _to_rgb(picture: Any, converter: Any) -> np.ndarray:
    """[H, W, 3] uint8, turned as the file says that it is to be shown."""
    pixels: np.ndarray = converter.reformat(picture, format="rgb24", threads=1).to_ndarray()
    if picture.rotation % 90:
        raise DecodeError("undecodable", f"frames are turned by {picture.rotation} degrees, wanted a multiple of 90")
    return np.ascontiguousarray(np.rot90(pixels, picture.rotation // 90))


def check_size(stream: Any, max_pixels: int) -> int:
    """Pixels of a frame, by the header.

    Raises:
        DecodeError: "undecodable" (it does not say), "too_large".
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise DecodeError("undecodable", "the video stream does not say how large its frames are")
    if width * height > max_pixels:
        raise DecodeError(
            "too_large", f"frames of {width} x {height}, wanted at most {max_pixels} pixels (`max_pixels`)"
        )
    return int(width * height)


def check_count(
    container: Any, stream: Any, start: Fraction, length: Fraction | None, fps: float | None, limit: int
) -> None:
    """Refuse, by the header, what would hold too many frames.

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
    """What is raised where frames would take more than `max_bytes`."""
    return DecodeError(
        "too_large",
        f"{frames} frames of {pixels} pixels, wanted at most {max_bytes} bytes of them (`max_bytes`): shorten the window, "
        "or keep fewer frames a second (`fps`)",
    )


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
