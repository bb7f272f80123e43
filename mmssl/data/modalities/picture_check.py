"""Check that a picture file is whole, by its header and its end: nothing is decoded."""

from __future__ import annotations

import re

import simplejpeg

from mmssl.data.media.container import boxes_end
from mmssl.data.modality import DecodeError

_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_SCAN, _WITHOUT_LENGTH = 0xDA, (0x01, 0xD8)
_END_OF_IMAGE = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"


def check_picture(data: bytes) -> None:
    """Check header and end of a JPEG, PNG, WebP, GIF, AVIF or HEIC file; other formats are not looked at.

    Bytes after the end are allowed. Of an animated GIF the first frame must be whole.

    Raises:
        DecodeError: "undecodable": the header is damaged, or the file ends before the picture does.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(_PNG):
        _check_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        wanted = 8 + int.from_bytes(data[4:8], "little")
        if wanted > len(data):
            raise _truncated(data, f"WebP, wanted {wanted} as in the header")
    elif data[:3] == b"GIF":
        _check_gif(data)
    elif data[4:8] == b"ftyp" and boxes_end(data) > len(data):
        raise _truncated(data, f"AVIF or HEIC, wanted {boxes_end(data)} as in its boxes")


def _check_jpeg(data: bytes) -> None:
    """Walk over the segments to the first scan, behind which an end marker must be (ITU-T T.81, annex B).

    A thumbnail inside a segment has an end marker too.
    """
    try:
        simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise DecodeError("undecodable", f"JPEG of {len(data)} bytes: {error}") from error
    place = 2
    while (match := _MARKER.search(data, place)) is not None:
        place, marker = match.end(), match[0][-1]
        if marker == _SCAN:  # in its data an FF is followed by 00 or a restart marker
            if data.find(_END_OF_IMAGE, place) < 0:
                break
            return
        if marker not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2])
    raise _truncated(data, "JPEG without an end marker")


def _check_png(data: bytes) -> None:
    """Walk over the chunks from IHDR to IEND (PNG specification, 5.3)."""
    if data[12:16] != b"IHDR":
        raise DecodeError("undecodable", f"PNG of {len(data)} bytes begins with the chunk {data[12:16]!r}, wanted IHDR")
    place = len(_PNG)
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4])
        if kind == b"IEND" and place <= len(data):
            return
    raise _truncated(data, "PNG without its last chunk")


def _check_gif(data: bytes) -> None:
    """Walk over the blocks to the end of the first frame (GIF89a, 12 to 23)."""
    place = 13 + _colour_table(data[10:11])
    while place < len(data):
        kind = data[place : place + 1]
        if kind == b",":  # a frame: its place and size, a colour table, the code size, and the data
            place = _behind_blocks(data, place + 11 + _colour_table(data[place + 9 : place + 10]))
            if place <= len(data):
                return
        elif kind == b"!":
            place = _behind_blocks(data, place + 2)
        else:
            raise DecodeError("undecodable", f"GIF of {len(data)} bytes: got a block {kind!r}, wanted a frame")
    raise _truncated(data, "GIF without a whole frame")


def _colour_table(flags: bytes) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _behind_blocks(data: bytes, place: int) -> int:
    """Offset behind the data blocks at `place`, of which the last is empty; more than the length of data if it is missing."""
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1


def _truncated(data: bytes, what: str) -> DecodeError:
    return DecodeError("undecodable", f"truncated file: got {len(data)} bytes of {what}")
