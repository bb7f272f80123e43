"""Fix mp3 streams without a length in their header: count the frames, and prepend an info frame with their number.

libsndfile estimates the length of such a stream from its size in bytes and the bit rate of its first frame. That is wrong if the
rate varies or a picture precedes the sound: the end would be lost, or the file would count as truncated.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

_BIT_RATES = {  # kbit/s of layer III by number in the header (ISO/IEC 11172-3, 2.4.2.3, and 13818-3)
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_HALVED = {3: 1, 2: 2, 0: 4}  # MPEG version number -> divisor of the rates
_INFO = 16  # bytes of the info header: name, flags, number of frames, padding


class _Frame(NamedTuple):
    size: int  # bytes
    side: int  # bytes of the header and the side information, before an encoder's info header
    like: bytes  # header bits that all frames of a stream share


def with_length(data: bytes) -> bytes:
    """Prepend the number of frames, and drop tags before the stream; other data, and streams with a length, are unchanged."""
    start = _behind_tag(data)
    first = _frame(data, start)
    if first is None or data[start + first.side :][:4] in (b"Xing", b"Info") or data[start + 36 :][:4] == b"VBRI":
        return data
    count, place = 0, start
    while (frame := _frame(data, place)) is not None and place + frame.size <= len(data):
        count += 1
        place += frame.size
        if _frame(data, place) is None:  # damage, another tag, or the end
            place = _next_frame(data, place, first.like)
    return _info_frame(data[start : start + 4], count) + data[start:] if count > 1 else data


def _behind_tag(data: bytes) -> int:
    """End offset of the ID3v2 tags before the sound (id3.org, id3v2.4.0, 3.1): sizes have seven bits a byte."""
    place = 0
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        size = sum(
            (byte & 127) << shift for byte, shift in zip(data[place + 6 : place + 10], (21, 14, 7, 0), strict=True)
        )
        place += 10 + size + (10 if data[place + 5] & 16 else 0)
    return place


def _frame(data: bytes, place: int) -> _Frame | None:
    """Parse the frame header at `place`; None if there is none."""
    return _parsed(data[place : place + 4])


@functools.lru_cache(1024)
def _parsed(head: bytes) -> _Frame | None:
    # A stream has few distinct headers, so the cache saves most of the time.
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync word of a layer III frame
        return None
    version, number, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or number in (0, 15) or rate == 3:
        return None
    full, mono = version == 3, head[3] >> 6 == 3
    size = (144 if full else 72) * 1000 * _BIT_RATES[full][number - 1] * _HALVED[version] // _RATES[rate]
    side = 4 + ((17 if mono else 32) if full else (9 if mono else 17))
    return _Frame(size + (head[2] >> 1 & 1), side, bytes((head[1] & 0xFE, head[2] & 0x0C)))


def _next_frame(data: bytes, place: int, like: bytes) -> int:
    """Offset of the next frame that is followed by another one, or of the end."""
    while (place := data.find(b"\xff", place)) >= 0:
        frame = _frame(data, place)
        if frame is not None and frame.like == like:
            after = _frame(data, place + frame.size)
            if place + frame.size == len(data) or (after is not None and after.like == like):
                return place
        place += 1
    return len(data)


def _info_frame(head: bytes, count: int) -> bytes:
    """A silent info frame with the number of following frames, as encoders write it."""
    for number in range(1, 15):
        mine = bytes((0xFF, head[1] | 1, number << 4 | head[2] & 0x0C, head[3]))
        frame = _frame(mine, 0)
        assert frame is not None
        if frame.size >= frame.side + _INFO:
            told = b"Info" + (1).to_bytes(4) + count.to_bytes(4)
            return (mine + bytes(frame.side - 4) + told).ljust(frame.size, b"\0")
    raise AssertionError("no bit rate has room for the info frame")
