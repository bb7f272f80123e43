"""Media containers with video and audio streams: open them from bytes, check them, and put their streams on one timeline.

The format is detected from the bytes, and only mp4 (mov, m4a) and Matroska (mkv, webm) are opened: FFmpeg would otherwise follow
playlists to other files. Times are fractions of a second, computed from time stamps and time bases, never from frame counts.
Time 0 is the start of the earliest video or audio stream, so that it is the same for all readers of a file.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Extent

SOUNDS = ("wav", "flac", "ogg", "opus", "mp3", "m4a")
VIDEOS = ("mp4", "webm", "mkv", "mov")

MATROSKA = b"\x1aE\xdf\xa3"
CLUSTER = b"\x1fC\xb6u"  # begins the media data of Matroska
OPUS_RATE = re.compile(rb"\x86\x86A_OPUS.{0,400}?\xb5(?:\x84(?P<short>.{4})|\x88(?P<long>.{8}))", re.DOTALL)
"""Regular expression of an Opus track in Matroska: its codec, and its sampling frequency as a float or double."""
BOXES = rb"....(ftyp|moov|mdat|wide|free|skip|styp)"
"""Regular expression of the first bytes of mp4, mov and m4a files."""


def is_media(data: bytes) -> bool:
    """Whether the bytes begin like mp4, mov, m4a, mkv or webm."""
    return data.startswith(MATROSKA) or re.match(BOXES, data, re.DOTALL) is not None


@contextmanager
def open_container(data: bytes) -> Iterator[Any]:
    """Open the container of these bytes (`av.container.InputContainer`), with single-threaded decoders; closed on exit.

    Raises:
        DecodeError: "empty" (0 bytes), "undecodable": also for all FFmpeg errors inside the block.
    """
    import av

    if not data:
        raise DecodeError("empty", "got 0 bytes, wanted a video file")
    if not is_media(data):
        raise DecodeError(
            "undecodable", f"got {len(data)} bytes beginning with {data[:12]!r}, wanted mp4, mov, webm or mkv"
        )
    form = "matroska" if data.startswith(MATROSKA) else "mov"
    end = _matroska_end(data) if form == "matroska" else boxes_end(data)
    if end > len(data):
        raise DecodeError("undecodable", f"truncated file: got {len(data)} bytes, wanted {end}")
    try:
        with av.open(
            io.BytesIO(_with_opus_rate(data) if form == "matroska" else data), format=form, metadata_errors="ignore"
        ) as container:
            for stream in container.streams:
                if stream.type in ("video", "audio") and stream.codec_context is not None:
                    stream.codec_context.thread_count = 1  # many workers decode in parallel
            yield container
    except (
        av.FFmpegError,
        ArithmeticError,
        ValueError,
    ) as error:  # PyAV raises ValueError for formats that it cannot convert
        raise DecodeError("undecodable", f"{len(data)} bytes of {form}: {error}") from error


def check_video(data: bytes) -> None:
    """Check the header of a video, and that the file is as long as it says. Nothing is decoded.

    Raises:
        DecodeError: as `open_container` and `first_stream`.
    """
    with open_container(data) as container:
        first_stream(container, "video")


def first_stream(container: Any, kind: str) -> Any:
    """The main stream of a kind ("video" or "audio").

    Raises:
        DecodeError: "missing": no such stream; cover pictures do not count as video. "undecodable": unknown codec.
    """
    for stream in _timed(container):
        if stream.type == kind:
            if stream.codec_context is None:
                raise DecodeError("undecodable", f"the {kind} stream has an unknown codec")
            return stream
    got = ", ".join(stream.type for stream in container.streams) or "none"
    raise DecodeError("missing", f"got the streams: {got}; wanted a stream of {kind}")


def timeline_zero(container: Any) -> Fraction:
    """Time stamp in seconds of time 0 of the sample's timeline."""
    return min((stream_start(stream) for stream in _timed(container)), default=Fraction(0))


def stream_start(stream: Any) -> Fraction:
    """Time stamp in seconds of the start of a stream."""
    return Fraction(stream.start_time or 0) * Fraction(stream.time_base)


def stream_extent(container: Any, stream: Any) -> Extent:
    """Start and end of a stream on the timeline, by the header, or else by the packets, without decoding.

    Raises:
        DecodeError: "empty": no packets.
    """
    origin, begin = timeline_zero(container), stream_start(stream)
    if stream.duration:
        end = begin + stream.duration * Fraction(stream.time_base)
    else:
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        if not packets:
            raise DecodeError("empty", f"no packets in the {stream.type} stream")
        last, length = max(packets)
        step = Fraction(stream.time_base) * length or usual_step(stream)
        end = Fraction(stream.time_base) * last + step
    return Extent(float(end - origin), float(begin - origin))


def usual_step(stream: Any) -> Fraction:
    """Seconds between frames if packets have no duration: by the average frame rate, else 1/30."""
    rate = getattr(stream, "average_rate", None)
    return 1 / Fraction(rate) if rate else Fraction(1, 30)


def _timed(container: Any) -> list[Any]:
    from av.stream import Disposition

    return [
        stream
        for stream in container.streams
        if stream.type in ("video", "audio") and not stream.disposition & Disposition.attached_pic
    ]


def boxes_end(data: bytes) -> int:
    """End offset of the last box of an mp4 file by its header (ISO/IEC 14496-12, 4.2); size 0: the end of the file."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size == 0:
            return len(data)
        if size < 8:  # not a box: FFmpeg decides
            return place
        place += size
    return place


def _with_opus_rate(data: bytes) -> bytes:
    """Write 48 kHz, the rate that Opus decodes to, into the headers of Opus tracks in Matroska.

    Some muxers write the rate before encoding. FFmpeg takes the length of the samples to skip from it, and the start of the
    stream would be up to 33 ms late.
    """
    header = data[: data.find(CLUSTER)]
    for track in OPUS_RATE.finditer(header):
        for form, group in ((">f", "short"), (">d", "long")):
            rate = struct.pack(form, 48_000.0)
            if track[group] not in (None, rate):
                data = data[: track.start(group)] + rate + data[track.end(group) :]
    return data


def _matroska_end(data: bytes) -> int:
    """End offset of the segment of a Matroska file by its header (RFC 8794, 6); unknown size: the end of the file."""
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
