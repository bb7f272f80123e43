"""Frames of a video decoded by torchcodec, which is optional: the same frames at the same times as `media_video.py` gives.

PyAV reads the header and the packets: what is refused, which frames are on screen in the window and when, is decided by the same
code. Their time stamps are handed to torchcodec, which then need not search the file for them, and what it decodes is compared
with them. Whether torchcodec works is found out by decoding: it can be imported, and still lack the FFmpeg that it needs.
"""

from __future__ import annotations

import functools
import heapq
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from mmssl.data.media.container import first_stream, opened
from mmssl.data.media.encode import encode_clip
from mmssl.data.media.frames import Shown, check_count, check_size, chosen, shown, too_long
from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Clip, Window

_NEAR = 1e-6  # seconds by which what is decoded may be off its packet


@functools.cache
def torchcodec_failure() -> str | None:
    """Why torchcodec does not decode in this process, in a few words; None: it does."""
    frames = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    frames[1] = 255
    try:
        clip = decode_with_torchcodec(
            encode_clip("mp4", frames, None, fps=10), max_pixels=32 * 32, max_bytes=frames.size
        )
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever keeps it from decoding is the answer
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {_first_sentence(cause)}"
    wrong = np.abs(clip.frames.astype(int) - frames).max() > 40
    return "a black and a white frame came out as others" if wrong else None


def decode_with_torchcodec(
    data: bytes, window: Window | None = None, *, fps: float | None = None, max_pixels: int, max_bytes: int
) -> Clip:
    """As `decode_video`.

    Raises:
        DecodeError: as `decode_video`.
    """
    start, length = (Fraction(0), None) if window is None else (Fraction(max(0.0, window[0])), Fraction(window[1]))
    with opened(data) as container:
        stream = first_stream(container, "video")
        pixels = check_size(stream, max_pixels)
        limit = max_bytes // (3 * pixels)
        check_count(container, stream, start, length, fps, limit)
        packets = _Packets()
        kept: list[Shown] = []
        end = Fraction(0)
        for frame, keep in chosen(shown(container, stream, start, packets), length, fps):
            end = frame.end
            if keep and len(kept) == limit:
                raise too_long(f"more than {limit}", pixels, max_bytes)
            if keep:
                kept.append(frame)
        if not kept:
            raise DecodeError("empty", f"no frame in {window or 'the video'}")
        frames = _frames(data, stream, packets.read, [frame.picture for frame in kept])
    return Clip(frames, np.array([float(max(frame.begin, Fraction(0))) for frame in kept]), float(end))


class _Packets:
    """Packets in place of decoded pictures, as `shown` asks for them.

    Attributes:
        read: all packets since the container was last moved, in the order of their times, from a key frame on.
    """

    def __init__(self) -> None:
        self.read: list[Any] = []

    def __call__(self, container: Any, stream: Any, origin: Fraction) -> Iterator[tuple[Any, Fraction]]:
        """Packets of frames that are shown, with their times."""
        self.read = []
        for packet in _in_order(container, stream):
            if self.read or packet.is_keyframe:  # what leans on earlier frames cannot be decoded
                self.read.append(packet)
                if not packet.is_discard:
                    yield packet, _stamp(packet) * Fraction(stream.time_base) - origin


def _in_order(container: Any, stream: Any) -> Iterator[Any]:
    """Packets by their times. They come in the order of decoding, and none is shown before it is decoded."""
    waiting: list[tuple[int, int, Any]] = []
    for number, packet in enumerate(container.demux(stream)):
        if packet.size == 0:  # the end
            continue
        while waiting and packet.dts is not None and waiting[0][0] < packet.dts:
            yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (_stamp(packet), number, packet))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _stamp(packet: Any) -> int:
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None:
        raise DecodeError("undecodable", "frames without time stamps")
    return int(stamp)


def _frames(data: bytes, stream: Any, packets: list[Any], kept: list[Any]) -> np.ndarray:
    """Frames [T, H, W, 3] of the packets `kept`, which are among `packets`."""
    from torchcodec.decoders import VideoDecoder

    places = {id(packet): place for place, packet in enumerate(packets)}
    known = [{"pts": _stamp(p), "duration": p.duration or 0, "key_frame": int(p.is_keyframe)} for p in packets]
    try:
        decoder = VideoDecoder(
            data,
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,  # many workers decode at a time
            custom_frame_mappings=json.dumps({"frames": known}),
        )
        batch = decoder.get_frames_at([places[id(packet)] for packet in kept])
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError("undecodable", f"{len(data)} bytes: {_first_sentence(error)}") from error
    wanted = np.array([float(_stamp(packet) * Fraction(stream.time_base)) for packet in kept])
    off = np.abs(batch.pts_seconds.numpy() - wanted).max()
    if off > _NEAR:
        raise DecodeError("undecodable", f"frames are decoded {off:.6f} s beside the times of their packets")
    return np.ascontiguousarray(batch.data.numpy())


def _first_sentence(error: BaseException) -> str:
    """What torchcodec says, without the causes and traces of loading that it adds."""
    return re.split(r"\.\s|\n", str(error).strip())[0] or "no message"
