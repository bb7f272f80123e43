"""Fix mp3 streams whose header lacks the length or the delay: count the frames, and prepend an info frame with both.

libsndfile estimates the length of such a stream from its size in bytes and the bit rate of its first frame. That is wrong if the
rate varies or a picture precedes the sound: the end would be lost, or the file would count as truncated. It also drops the first
529 samples, as if the encoder had told its delay. FFmpeg keeps them, and so do streams from here.
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
_NAMES = (b"Xing", b"Info")  # of the info header
_FIELDS = {
    1: 4,
    2: 4,
    4: 100,
    8: 4,
}  # its flags -> bytes: frames, bytes, table of contents, quality; then the encoder's tag:
# its name, and from byte 21 on delay and padding, 12 bits each
_DECODER = 529  # samples that decoders drop beside the delay of the encoder: their own delay


class _Frame(NamedTuple):
    size: int  # bytes
    side: int  # bytes of the header and the side information, before an encoder's info header
    like: bytes  # header bits that all frames of a stream share


def with_length(data: bytes) -> bytes:
    """Prepend number of frames and delay, and drop tags before the stream; other data, and streams with both, are unchanged."""
    start = _behind_tag(data)
    first = _frame(data, start)
    if first is None or _has_delay(data, start + first.side):
        return data
    told = _told_frames(data, start, first)
    if data[start + first.side :][:4] in _NAMES or data[start + 36 :][:4] == b"VBRI":
        start = _next_frame(data, start + 4, first.like)
    count, place = 0, start
    while (frame := _frame(data, place)) is not None and place + frame.size <= len(data):
        count += 1
        place += frame.size
        if _frame(data, place) is None:  # damage, another tag, or the end
            place = _next_frame(data, place, first.like)
    return _info_frames(data[start : start + 4], max(count, told)) + data[start:] if count > 1 else data


def has_length(data: bytes) -> bool:
    """Whether the data are no mp3 stream, or one with an info header that has the number of frames."""
    start = _behind_tag(data)
    first = _frame(data, start)
    return first is None or _told_frames(data, start, first) > 0


def _told_frames(data: bytes, start: int, first: _Frame) -> int:
    """Number of frames in the info header of the stream at `start`; 0: none."""
    place = start + first.side
    if data[place : place + 4] in _NAMES:
        return int.from_bytes(data[place + 8 : place + 12]) if data[place + 7] & 1 else 0
    return int.from_bytes(data[start + 50 : start + 54]) if data[start + 36 : start + 40] == b"VBRI" else 0


def _has_delay(data: bytes, place: int) -> bool:
    """Whether an info header stands at `place`, with the number of frames and an encoder's tag."""
    flags = int.from_bytes(data[place + 4 : place + 8])
    tag = place + 8 + sum(size for flag, size in _FIELDS.items() if flags & flag)
    return data[place : place + 4] in _NAMES and bool(flags & 1) and any(data[tag : tag + 1])


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


def _info_frames(head: bytes, count: int) -> bytes:
    """An info frame with the number of following frames, as encoders write it, and a silent frame for decoders to drop."""
    samples = 1152 if head[1] >> 3 & 3 == 3 else 576
    delay, padding = samples - _DECODER, _DECODER
    tag = b"LAME".ljust(21, b"\0") + (delay << 12 | padding).to_bytes(3)
    told = b"Info" + (1).to_bytes(4) + (count + 1).to_bytes(4) + tag
    return _empty_frame(head, told) + _empty_frame(head, b"")


def _empty_frame(head: bytes, content: bytes) -> bytes:
    """A frame like those of header `head` that plays silence and has room for `content` behind its side information."""
    for number in range(1, 15):
        mine = bytes((0xFF, head[1] | 1, number << 4 | head[2] & 0x0C, head[3]))
        frame = _frame(mine, 0)
        assert frame is not None
        if frame.size >= frame.side + len(content):
            return (mine + bytes(frame.side - 4) + content).ljust(frame.size, b"\0")
    raise AssertionError("no bit rate has room for the info frame")
