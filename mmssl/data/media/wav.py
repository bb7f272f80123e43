"""Length of wav files: told by the header, cut short, or not known when the header was written.

Programs that write to a pipe cannot go back to fill in the size of the samples. They leave 0, or a number that no file reaches;
which one differs from program to program. The rule, for the chunk `data`:

- A size that fits into the file is true, except for 0 before bytes that are no further chunks.
- A larger size is unknown if the size of the whole (RIFF) is that of the file, or from `PLACEHOLDER` bytes on. The samples then go
  on to the end of the file.
- Any other larger size means that the file was cut short.

Sources: Multimedia Programming Interface and Data Specifications 1.0 (RIFF), EBU Tech 3306 (RF64: the sizes stand in `ds64`).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from mmssl.data.modality import DecodeError

PLACEHOLDER = 1 << 30
"""Bytes of samples from which on a size that the file does not hold counts as unknown: 1 GiB, 3 hours of 48 kHz stereo."""

_BEGIN = re.compile(rb"(RIFF|RF64|RIFX)....WAVE", re.DOTALL)


class _Samples(NamedTuple):
    """The chunk `data`: offset of its samples, bytes by the header and in the file, offset of this number, and its bytes."""

    place: int
    told: int
    held: int
    field: int
    width: int


def with_length(data: bytes) -> bytes:
    """Write the length into the header of a wav file that does not tell it; all other data are unchanged.

    Raises:
        DecodeError: "undecodable": the file was cut short.
    """
    found = _samples(data)
    if found is None:
        return data
    if _is_unknown(data, found):
        size = min(found.held, (1 << 8 * found.width) - 2)
        return data[: found.field] + size.to_bytes(found.width, _order(data)) + data[found.field + found.width :]
    if found.told > found.held:
        raise DecodeError(
            "undecodable",
            f"truncated file: got {found.held} bytes of samples, wanted {found.told} as in the header",
        )
    return data


def has_length(data: bytes) -> bool:
    """Whether the data are no wav file, or one that tells its length."""
    found = _samples(data)
    return found is None or not _is_unknown(data, found)


def _is_unknown(data: bytes, found: _Samples) -> bool:
    if found.told <= found.held:
        return found.told == 0 < found.held and not _are_chunks(data, found.place)
    field, width = (20, 8) if data.startswith(b"RF64") else (4, 4)
    whole = int.from_bytes(data[field : field + width], _order(data)) + 8
    return abs(whole - len(data)) <= 1 or found.told >= PLACEHOLDER


def _samples(data: bytes) -> _Samples | None:
    if not _BEGIN.match(data):
        return None
    place, wide = 12, data.startswith(b"RF64")
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], _order(data))
        if data[place : place + 4] == b"data":
            field, width = (28, 8) if wide and data[12:16] == b"ds64" else (place + 4, 4)
            told = int.from_bytes(data[field : field + width], _order(data))
            return _Samples(place + 8, told, len(data) - place - 8, field, width)
        place += 8 + size + size % 2
    return None


def _are_chunks(data: bytes, place: int) -> bool:
    """Whether only whole chunks with printable names stand from `place` to the end."""
    while place + 8 <= len(data) and re.fullmatch(rb"[ -~]{4}", data[place : place + 4]):
        size = int.from_bytes(data[place + 4 : place + 8], _order(data))
        place += 8 + size + size % 2
    return 0 <= place - len(data) <= 1


def _order(data: bytes) -> Literal["big", "little"]:
    return "big" if data.startswith(b"RIFX") else "little"
