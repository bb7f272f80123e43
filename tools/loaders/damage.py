"""Fourteen kinds of damage to one shard, done to its sample in the middle.

Those of tar files are what copies, full disks and writers do. Formats with a table of offsets (uint32 n, uint32 offsets [n+1],
samples) have the same kinds but for the three that only a tar file can have: there a header is an entry of the table.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loaders.adapter import CaptionedPicture

PAGE = b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1></body></html>\n" * 40


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of the sample in the middle of a shard lie.

    Attributes:
        data: the shard.
        layout: as in `LoaderAdapter`.
        key: of the sample.
        start: of its first byte, with its header.
        picture: first byte of its picture, and the one behind it.
        header: bytes that tell where it lies: its tar header, or its entry in the table.
    """

    data: bytes
    layout: str
    key: str
    start: int
    picture: tuple[int, int]
    header: tuple[int, int]

    @classmethod
    def of(cls, data: bytes, layout: str, samples: Sequence[CaptionedPicture]) -> Anatomy:
        """Find the parts by the bytes of the samples' pictures."""
        inside = sorted((data.find(sample.jpeg), sample) for sample in samples if sample.jpeg in data)
        at, sample = inside[len(inside) // 2]
        picture = (at, at + len(sample.jpeg))
        if layout == "tar":
            return cls(data, layout, sample.key, at - 512, picture, (at - 512, at))
        count = int.from_bytes(data[:4], "little")
        offsets = np.frombuffer(data, np.uint32, count + 1, 4)
        number = int(np.searchsorted(offsets, at, "right")) - 1
        entry = 4 + 4 * number
        return cls(data, layout, sample.key, int(offsets[number]), picture, (entry, entry + 4))

    @property
    def table(self) -> tuple[int, int]:
        """All bytes that tell where samples lie, as far as they belong together: the tar header, or the whole table."""
        return self.header if self.layout == "tar" else (0, 8 + 4 * int.from_bytes(self.data[:4], "little"))

    def replaced(self, start: int, new: bytes) -> bytes:
        """The shard with other bytes from `start` on."""
        return self.data[:start] + new + self.data[start + len(new) :]


def _hole(shard: Anatomy, start: int, stop: int) -> bytes:
    return shard.replaced(start, bytes(stop - start))


def _one_byte(shard: Anatomy) -> bytes:
    # A digit of the header's checksum, or the low byte of the offset.
    place, bit = (shard.header[0] + 151, 0x01) if shard.layout == "tar" else (shard.header[0], 0x10)
    return shard.replaced(place, bytes([shard.data[place] ^ bit]))


def _half_zeroed(shard: Anatomy) -> bytes:
    start, stop = shard.picture
    return _hole(shard, (start + stop) // 2, stop)


def _flipped(shard: Anatomy) -> bytes:
    start, stop = shard.picture
    data = bytearray(shard.data)
    rng = np.random.default_rng(20)
    for bit in rng.choice(8 * (stop - start) // 2, 20, replace=False).tolist():  # in the half without JPEG headers
        data[stop - 3 - bit // 8] ^= 1 << bit % 8
    return bytes(data)


def _members(shard: Anatomy) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as tar:
        ends = [(m.name, m.offset, m.offset_data + -(-m.size // 512) * 512) for m in tar.getmembers()]
    return [(name, shard.data[start:stop]) for name, start, stop in ends]


def _joined(members: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(data for _, data in members) + bytes(1024)


def _missing(shard: Anatomy) -> bytes:
    return _joined([member for member in _members(shard) if member[0] != f"{shard.key}.jpg"])


def _apart(shard: Anatomy) -> bytes:
    return _joined(sorted(_members(shard), key=lambda member: member[0].rpartition(".")[2]))


def _twice(shard: Anatomy) -> bytes:
    members = _members(shard)
    again = [member for member in members if member[0].startswith(f"{shard.key}.")]
    at = members.index(again[-1]) + 1
    return _joined([*members[:at], *again, *members[at:]])


KINDS: dict[str, Callable[[Anatomy], bytes]] = {
    "cut inside a picture": lambda shard: shard.data[: sum(shard.picture) // 2],
    "cut inside a header": lambda shard: shard.data[: sum(shard.table) // 2],
    "cut between samples": lambda shard: shard.data[: shard.start],
    "one byte of a header changed": _one_byte,
    "header zeroed": lambda shard: _hole(shard, *shard.table),
    "hole of 1 KiB": lambda shard: _hole(shard, shard.start, shard.start + 1024),
    "empty file": lambda shard: b"",
    "HTML page in its place": lambda shard: PAGE,
    "second half of a picture zeroed": _half_zeroed,
    "20 bits of a picture flipped": _flipped,
    "first bytes of a picture destroyed": lambda shard: shard.replaced(shard.picture[0], b"XXXX"),
    "picture missing": _missing,
    "members of samples not adjacent": _apart,
    "sample stored twice": _twice,
}
ONLY_TAR = ("picture missing", "members of samples not adjacent", "sample stored twice")


def damaged(shard: Anatomy, kind: str) -> bytes | None:
    """The shard with a kind of damage; None if its format cannot have it."""
    return None if kind in ONLY_TAR and shard.layout != "tar" else KINDS[kind](shard)
