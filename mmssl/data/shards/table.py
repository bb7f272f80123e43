"""Index of one shard as a few arrays, made from its tar headers."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmssl.core.errors import DataError
from mmssl.data.shards.tar import Member, walk

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_SYSTEM = re.compile(r"(.*/)?__MACOSX/", re.DOTALL)


@dataclass(frozen=True)
class ShardTable:
    """Index of a shard: n samples with m members in all, sorted by sample.

    Attributes:
        extensions: the distinct extensions; `extension` has numbers into this list.
        keys: UTF-8 bytes of all keys; key_ends: [n+1] offsets of their ends, starting at 0.
        members: [n+1] first member of each sample; extension, offset, size: [m], of each member.
        shard_bytes: size of the shard.
        ignored: number of files that belong to no sample: without an extension, hidden, or in a folder `__MACOSX`.
        crc: [m] CRC-32 of the data of each member, -1: unknown.
    """

    extensions: tuple[str, ...]
    keys: np.ndarray
    key_ends: np.ndarray
    members: np.ndarray
    extension: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    shard_bytes: int
    ignored: int
    crc: np.ndarray

    def __len__(self) -> int:
        return len(self.key_ends) - 1


def is_metadata(name: str) -> bool:
    """Whether a member is WebDataset's metadata (`__meta__`), which is read by nobody and not counted."""
    return _META.match(name) is not None


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member name into (key, extension) by WebDataset's rule: the key is the folder and the base name up to its first
    dot, the rest the extension in lower case. None: no part of a sample, as the name has no extension.

    Hidden files (`._0.jpg`, `.DS_Store`) and those below `__MACOSX` are no part either, in every folder; WebDataset takes the
    hidden files of a folder for a separate sample.
    """
    match = None if _SYSTEM.match(name) else _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def scan(shard: Path) -> ShardTable:
    """Make the table of a shard from its tar headers. Members of one key form one sample even if others lie between them.

    Raises:
        DataError: the shard is damaged or holds no sample.
        OSError: it cannot be read.
    """
    return make_table(shard, walk(shard))


def make_table(shard: Path, found: Iterable[Member]) -> ShardTable:
    """Make the table of the given members of a shard, without WebDataset's metadata (`__meta__`).

    Raises:
        DataError: no sample among them. Others: from iterating `found`.
    """
    samples: dict[str, int] = {}
    extensions: dict[str, int] = {}
    owner: list[int] = []
    kind: list[int] = []
    place: list[tuple[int, int]] = []
    ignored = 0
    for name, offset, size in found:
        if is_metadata(name):
            continue
        parts = split_name(name)
        if parts is None:
            ignored += 1
            continue
        owner.append(samples.setdefault(parts[0], len(samples)))
        kind.append(extensions.setdefault(parts[1], len(extensions)))
        place.append((offset, size))
    if not samples:
        what = (
            f"its {ignored} files are hidden or have names without an extension" if ignored else "the tar file is empty"
        )
        raise DataError(f"{shard} holds no sample: {what}; write it again, or remove it from the list")
    if len(extensions) > np.iinfo(np.uint16).max:
        raise DataError(
            f"{shard} has {len(extensions)} different extensions, probably from dots in the keys, such as 'photo.17.3.jpg'"
        )
    order = np.argsort(np.array(owner), kind="stable")
    keys = [key.encode() for key in samples]
    places = np.array(place, np.int64)[order]
    return ShardTable(
        extensions=tuple(extensions),
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.concatenate([[0], np.cumsum([len(key) for key in keys], dtype=np.int64)]),
        members=np.concatenate([[0], np.cumsum(np.bincount(owner), dtype=np.int64)]),
        extension=np.array(kind, np.uint16)[order],
        offset=places[:, 0].copy(),
        size=places[:, 1].copy(),
        shard_bytes=shard.stat().st_size,
        ignored=ignored,
        crc=np.full(len(order), -1, np.int64),
    )


def checksums(shard: Path, table: ShardTable) -> ShardTable:
    """The table with the CRC-32 of every member (16 us for 66 KB); reads the whole shard, a megabyte at a time.

    Raises:
        OSError: it cannot be read.
    """
    crc = table.crc.copy()
    with shard.open("rb", buffering=0) as file:
        for row in np.argsort(table.offset, kind="stable").tolist():
            position, stop, value = int(table.offset[row]), int(table.offset[row] + table.size[row]), 0
            while position < stop:
                piece = os.pread(file.fileno(), min(1 << 20, stop - position), position)
                if not piece:
                    raise OSError(f"the file ends at byte {position}")
                value = zlib.crc32(piece, value)
                position += len(piece)
            crc[row] = value
    return replace(table, crc=crc)


def members_of(table: ShardTable) -> Iterator[tuple[str, str, int, int, int]]:
    """(key, extension, offset, size, checksum) of every member."""
    data = table.keys.tobytes()
    for number, (start, stop) in enumerate(pairwise(table.key_ends.tolist())):
        key = data[start:stop].decode()
        for row in range(int(table.members[number]), int(table.members[number + 1])):
            at = (int(column[row]) for column in (table.offset, table.size, table.crc))
            yield key, table.extensions[table.extension[row]], *at


def slice_starts(shards: Sequence[int], size: int) -> np.ndarray:
    """First sample of each slice, [slices] int64; each shard is cut into even slices of about `size` samples."""
    starts, first = [], 0
    for count in shards:
        parts = max(1, round(count / size))
        starts.append(first + np.arange(parts) * count // parts)
        first += count
    return np.concatenate(starts)
