"""PNG files of 16-bit colours, which Pillow cuts to 8 bits: their values as they are."""

from __future__ import annotations

import numpy as np

from mmssl.data.modality import DecodeError

_DEEP, _GREY = 16, 0


def has_deep_colours(data: bytes) -> bool:
    """Whether the header is of a PNG with 16 bits a sample and more than one channel."""
    return data.startswith(b"\x89PNG") and data[24:25] == bytes([_DEEP]) and data[25:26] != bytes([_GREY])


def decode_deep_colours(data: bytes) -> np.ndarray:
    """All channels of a PNG with 16 bits a sample: uint16 [H, W, C], C = 2 (grey, alpha), 3 or 4 (RGB, alpha).

    FFmpeg does not compare checksums: decode the file with Pillow first.

    Raises:
        DecodeError: "undecodable".
    """
    import av

    try:
        decoder = av.CodecContext.create("png", "r")
        decoder.thread_count = 1  # many workers decode in parallel
        frame = [*decoder.decode(av.Packet(data)), *decoder.decode(None)][0]
    except (av.FFmpegError, IndexError) as error:
        raise DecodeError("undecodable", f"PNG of {len(data)} bytes: {error}") from error
    plane, channels = frame.planes[0], len(frame.format.components)
    lines = np.frombuffer(memoryview(plane), ">u2").reshape(frame.height, plane.line_size // 2)
    values: np.ndarray = lines[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    return values.astype(np.uint16)
