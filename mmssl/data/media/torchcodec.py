"""Decode video frames with torchcodec (optional): the same frames at the same times as `frames.decode_video`.

PyAV reads the header and the packets, so that the same code refuses files and selects the frames in the window. torchcodec gets
their time stamps, so it need not scan the file, and the times of its frames are compared with them. A test decode shows whether
torchcodec works: it may import although its FFmpeg libraries are missing.
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

from mmssl.data.media.container import first_stream, open_container
from mmssl.data.media.encode import encode_clip
from mmssl.data.media.frames import (
    ShownFrame,
    check_frame_count,
    check_frame_size,
    is_mirrored,
    select_frames,
    timed_frames,
    too_long,
)
from mmssl.data.modality import DecodeError
from mmssl.data.timeline import Clip, Window

_NEAR = 1e-6  # maximum difference in seconds between a decoded frame and its packet


@functools.cache
def torchcodec_failure() -> str | None:
    """Why torchcodec cannot decode in this process, in a few words; None: it can."""
    frames = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    frames[1] = 255
    try:
        clip = decode_with_torchcodec(
            encode_clip("mp4", frames, None, fps=10), max_pixels=32 * 32, max_bytes=frames.size
        )
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # any error is the reason
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {_first_sentence(cause)}"
    wrong = np.abs(clip.frames.astype(int) - frames).max() > 40
    return "it decodes a black and a white frame to other colours" if wrong else None


def decode_with_torchcodec(
    data: bytes, window: Window | None = None, *, fps: float | None = None, max_pixels: int, max_bytes: int
) -> Clip:
    """Decode frames of a window with torchcodec; arguments and result as in `decode_video`.

    Raises:
        DecodeError: as `decode_video`.
    """
    start, length = (Fraction(0), None) if window is None else (Fraction(max(0.0, window[0])), Fraction(window[1]))
    with open_container(data) as container:
        stream = first_stream(container, "video")
        pixels = check_frame_size(stream, max_pixels)
        limit = max_bytes // (3 * pixels)
        check_frame_count(container, stream, start, length, fps, limit)
        packets = _Packets()
        kept: list[ShownFrame] = []
        end = Fraction(0)
        for frame, keep in select_frames(timed_frames(container, stream, start, packets), length, fps):
            end = frame.end
            if keep and len(kept) == limit:
                raise too_long(f"more than {limit}", pixels, max_bytes)
            if keep:
                kept.append(frame)
        if not kept:
            raise DecodeError("empty", f"no frame in {window or 'the video'}")
        _check_mirrored(data)
        frames = _frames(data, stream, packets.read, [frame.picture for frame in kept])
    return Clip(frames, np.array([float(max(frame.begin, Fraction(0))) for frame in kept]), float(end))


class _Packets:
    """Source of packets instead of decoded frames, for `timed_frames`.

    Attributes:
        read: all packets since the last seek, in the order of their times, from a key frame on.
    """

    def __init__(self) -> None:
        self.read: list[Any] = []

    def __call__(self, container: Any, stream: Any, origin: Fraction) -> Iterator[tuple[Any, Fraction]]:
        """Iterate over packets of visible frames, with their times."""
        self.read = []
        for packet in _in_order(container, stream):
            if self.read or packet.is_keyframe:  # frames before the first key frame cannot be decoded
                self.read.append(packet)
                if not packet.is_discard:
                    yield packet, _stamp(packet) * Fraction(stream.time_base) - origin


def _in_order(container: Any, stream: Any) -> Iterator[Any]:
    """Sort packets by time. They come in decoding order, and no frame is shown before it is decoded."""
    waiting: list[tuple[int, int, Any]] = []
    for number, packet in enumerate(container.demux(stream)):
        if packet.size == 0:  # the end
            continue
        while waiting and packet.dts is not None and waiting[0][0] < packet.dts:
            yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (_stamp(packet), number, packet))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _check_mirrored(data: bytes) -> None:
    """Refuse files that mirror their frames: torchcodec only turns them."""
    with open_container(data) as container:
        picture = next(container.decode(first_stream(container, "video")), None)
        if picture is not None and is_mirrored(picture):
            raise DecodeError(
                "undecodable", "the file mirrors its frames, which torchcodec ignores: set `backend: pyav`"
            )


def _stamp(packet: Any) -> int:
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None:
        raise DecodeError("undecodable", "got frames without time stamps")
    return int(stamp)


def _frames(data: bytes, stream: Any, packets: list[Any], kept: list[Any]) -> np.ndarray:
    """Decode the frames [T, H, W, 3] of the packets `kept`, a subset of `packets`."""
    from torchcodec.decoders import VideoDecoder

    places = {id(packet): place for place, packet in enumerate(packets)}
    known = [{"pts": _stamp(p), "duration": p.duration or 0, "key_frame": int(p.is_keyframe)} for p in packets]
    try:
        decoder = VideoDecoder(
            data,
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,  # many workers decode in parallel
            custom_frame_mappings=json.dumps({"frames": known}),
        )
        batch = decoder.get_frames_at([places[id(packet)] for packet in kept])
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError("undecodable", f"{len(data)} bytes: {_first_sentence(error)}") from error
    wanted = np.array([float(_stamp(packet) * Fraction(stream.time_base)) for packet in kept])
    off = np.abs(batch.pts_seconds.numpy() - wanted).max()
    if off > _NEAR:
        raise DecodeError("undecodable", f"got frames {off:.6f} s from the times of their packets, wanted equal times")
    return np.ascontiguousarray(batch.data.numpy())


def _first_sentence(error: BaseException) -> str:
    """First sentence of torchcodec's error message, without its causes and traces."""
    return re.split(r"\.\s|\n", str(error).strip())[0] or "no message"
