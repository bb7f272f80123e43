"""Files with several streams, such as videos with sound: opened from bytes, looked at, and put on one timeline.

The format is taken from the bytes, and only mp4 (mov, m4a) and Matroska (mkv, webm) are opened: FFmpeg would otherwise follow
playlists to other files. Times are fractions of a second made from time stamps and time bases, never from numbers of frames.
Time 0 is the first instant of the earliest picture or sound stream, so that all readers of one file mean the same moment by it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Extent

IMAGES = ("jpg", "jpeg", "png", "webp")
SOUNDS = ("wav", "flac", "ogg", "opus", "mp3", "m4a")
VIDEOS = ("mp4", "webm", "mkv", "mov")
MEDIA = (*IMAGES, *SOUNDS, *VIDEOS)

MATROSKA = b"\x1aE\xdf\xa3"
BOXES = rb"....(ftyp|moov|mdat|wide|free|skip|styp)"
"""How files made of boxes begin, as a regular expression: mp4 and its kin."""


def is_media(data: bytes) -> bool:
    """Whether these are bytes of a container that is read here."""
    return data.startswith(MATROSKA) or re.match(BOXES, data, re.DOTALL) is not None


@contextmanager
def opened(data: bytes) -> Iterator[Any]:
    """The container of these bytes (`av.container.InputContainer`), with decoders that use one thread; closed in the end.

    Raises:
        DecodeError: "empty" (0 bytes), "undecodable": also in place of all that FFmpeg finds wrong inside of the block.
    """
    import av

    if not data:
        raise DecodeError("empty", "0 bytes, wanted a video file")
    if not is_media(data):
        raise DecodeError(
            "undecodable", f"{len(data)} bytes beginning with {data[:12]!r}, wanted mp4, mov, webm or mkv"
        )
    form = "matroska" if data.startswith(MATROSKA) else "mov"
    end = _matroska_end(data) if form == "matroska" else _boxes_end(data)
    if end > len(data):
        raise DecodeError("undecodable", f"cut short: the file should have {end} bytes, and there are {len(data)}")
    try:
        with av.open(io.BytesIO(data), format=form, metadata_errors="ignore") as container:
            for stream in container.streams:
                if stream.type in ("video", "audio") and stream.codec_context is not None:
                    stream.codec_context.thread_count = 1  # many workers decode at a time
            yield container
    except (
        av.FFmpegError,
        ArithmeticError,
        ValueError,
    ) as error:  # PyAV has ValueErrors for formats that it cannot hand over
        raise DecodeError("undecodable", f"{len(data)} bytes of {form}: {error}") from error


def first_stream(container: Any, kind: str) -> Any:
    """The stream of that kind ("video" or "audio") that is the file's main one.

    Raises:
        DecodeError: "missing": there is none; a picture of a cover is no video. "undecodable": of an unknown codec.
    """
    for stream in _timed(container):
        if stream.type == kind:
            if stream.codec_context is None:
                raise DecodeError("undecodable", f"the {kind} stream has a codec that is unknown")
            return stream
    got = ", ".join(stream.type for stream in container.streams) or "none"
    raise DecodeError("missing", f"no {kind} stream; the streams are: {got}")


def zero(container: Any) -> Fraction:
    """The time stamp, in seconds, of the instant that is 0 on the sample's timeline."""
    return min((start_of(stream) for stream in _timed(container)), default=Fraction(0))


def start_of(stream: Any) -> Fraction:
    """The time stamp of the first instant of a stream in seconds."""
    return Fraction(stream.start_time or 0) * Fraction(stream.time_base)


def extent(container: Any, stream: Any) -> Extent:
    """When a stream begins and ends on the timeline. Where the header does not say, the packets do, which are not decoded.

    Raises:
        DecodeError: "empty": there are none.
    """
    origin, begin = zero(container), start_of(stream)
    if stream.duration:
        end = begin + stream.duration * Fraction(stream.time_base)
    else:
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        if not packets:
            raise DecodeError("empty", f"nothing in the {stream.type} stream")
        last, length = max(packets)
        step = Fraction(stream.time_base) * length or usual_step(stream)
        end = Fraction(stream.time_base) * last + step
    return Extent(float(end - origin), float(begin - origin))


def usual_step(stream: Any) -> Fraction:
    """Seconds from one frame of a video to the next where none are written: by the average rate, else 1/30."""
    rate = getattr(stream, "average_rate", None)
    return 1 / Fraction(rate) if rate else Fraction(1, 30)


def _timed(container: Any) -> list[Any]:
    from av.stream import Disposition

    return [
        stream
        for stream in container.streams
        if stream.type in ("video", "audio") and not stream.disposition & Disposition.attached_pic
    ]


def _boxes_end(data: bytes) -> int:
    """Where the last box of an mp4 file ends by its own account (ISO/IEC 14496-12, 4.2); 0 size: at the end of the file."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size == 0:
            return len(data)
        if size < 8:  # not a box: FFmpeg will say what it makes of it
            return place
        place += size
    return place


def _matroska_end(data: bytes) -> int:
    """Where the segment of a Matroska file ends by its own account (RFC 8794, 6); unknown sizes: at the end of the file."""
    place, end = 0, len(data)
    for marker in (MATROSKA, b"\x18S\x80g"):
        if data[place : place + 4] != marker or place + 4 >= len(data):
            return end
        first = data[place + 4]
        octets = 9 - first.bit_length()
        size = int.from_bytes(data[place + 4 : place + 4 + octets]) & ((1 << 7 * octets) - 1)
        if first == 0 or size == (1 << 7 * octets) - 1:
            return end
        place += 4 + octets + size
    return place
