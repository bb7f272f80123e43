"""Index of shards: random access to the samples of all shards by one dense number."""

from __future__ import annotations

import hashlib
import os
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from mmssl.core.errors import DataError, os_words
from mmssl.core.sample import Fault, Origin
from mmssl.data.modality import DecodeError
from mmssl.data.shards.local import LocalReader
from mmssl.data.shards.manifests import Formats, read_formats, warn_of_unfinished
from mmssl.data.shards.paths import expand, expand_urls
from mmssl.data.shards.patience import without_secrets
from mmssl.data.shards.remote import CacheConfig, Remote, open_remote
from mmssl.data.shards.remote_manifests import read_remote_formats
from mmssl.data.shards.salvage import salvage_table
from mmssl.data.shards.sidecar import load_table
from mmssl.data.shards.storage import PIPE, is_remote
from mmssl.data.shards.table import ShardTable


class RawSample(NamedTuple):
    """Undecoded sample.

    Attributes:
        key, origin: its name and place.
        fields: extension -> bytes, of the members that were asked for.
        extensions: of all its members, in the order of the shard.
        formats: formats of its members, as the manifest of its shard says.
    """

    key: str
    origin: Origin
    fields: dict[str, bytes]
    extensions: tuple[str, ...] = ()
    formats: Formats = MappingProxyType({})


class ShardIndex:
    """Random access to the N samples of a list of shards, by number.

    Samples are numbered 0 ... N-1 in the order of the shards, and of the first member of each sample.

    Holds numpy arrays only (about 30 bytes a sample and 18 a member), no open files: it can be pickled to workers.

    Attributes:
        source: name of the data set; part of every sample's identity.
        shards: the files or URLs, in order.
        labels: names of the shards below their common folder, so that they do not change when it moves.
        digest: hash over labels, keys, names, sizes and offsets: two indexes with equal digests number the same samples alike.
        reader: reads byte ranges of shards.
        ignored: number of members that belong to no sample, see `split_name`.
        lost: unreadable parts of damaged shards, if opened with `salvage`; gone: estimated number of lost samples.
        verify: whether members are compared with their checksums, where sidecars have them.
        formats: formats of the members of each shard, as its manifest says.
    """

    max_member_bytes: ClassVar[int] = 1 << 30

    def __init__(
        self,
        shards: Sequence[Path | str],
        tables: Sequence[ShardTable],
        source: str = "data",
        reader: Reader | None = None,
        formats: Sequence[Formats] = (),
    ) -> None:
        self.source = source
        self.shards = tuple(shards)
        self.labels = _labels(self.shards)
        self._names = [without_secrets(str(shard)) for shard in self.shards]
        self.digest = _digest(self.labels, tables)
        self.ignored = sum(table.ignored for table in tables)
        self.extensions = tuple(sorted({extension for table in tables for extension in table.extensions}))
        number = {extension: i for i, extension in enumerate(self.extensions)}
        self._shard_bytes = [table.shard_bytes for table in tables]
        self._samples: list[int] = _ends([len(table) for table in tables]).tolist()  # [S+1] first sample of each shard
        self._keys = np.concatenate([table.keys for table in tables])
        self._key_ends = _join([table.key_ends for table in tables])  # [N+1]
        self._members = _join([table.members for table in tables])  # [N+1] first member of each sample
        self._extension = np.concatenate(
            [np.array([number[e] for e in table.extensions], np.uint16)[table.extension] for table in tables]
        )
        self._offset = np.concatenate([table.offset for table in tables])
        self._size = np.concatenate([table.size for table in tables])
        self._crc = np.concatenate([table.crc for table in tables])
        self.lost: tuple[Fault, ...] = ()
        self.gone = 0
        self.verify = True
        self.formats = tuple(formats) or ({},) * len(self.shards)
        self.reader: Reader = reader or LocalReader([Path(shard) for shard in self.shards], self._shard_bytes)

    @classmethod
    def open(
        cls,
        shards: Sequence[str | Path],
        *,
        source: str = "data",
        remote: Remote | None = None,
        salvage: bool = False,
    ) -> ShardIndex:
        """Index local shards (paths, folders, globs and brace patterns) or URLs with braces. With sidecars no headers are read.

        Args:
            shards: all local, or all remote.
            source: name of the data set.
            remote: client for URLs; default: one with the usual cache.
            salvage: index the readable part of damaged local shards, and list the rest in `lost`.

        Raises:
            DataError: a pattern without files, or damaged, empty or repeated shards: the message names all of them.
        """
        if any(is_remote(str(shard)) for shard in shards):
            urls = expand_urls(shards)
            remote = remote or CacheConfig().build()
            tables, reader = open_remote(urls, remote)
            return cls(urls, tables, source, reader, read_remote_formats(urls, remote))
        paths = expand(shards)
        tables, problems, gone = [], [], 0
        lost: list[Fault] = []
        for path in paths:
            try:
                table, faults, count = salvage_table(path, source) if salvage else (load_table(path), [], 0)
                tables.append(table)
                lost, gone = lost + faults, gone + count
            except (DataError, OSError) as error:
                problems.append(f"{path}: {os_words(error)}" if isinstance(error, OSError) else str(error))
        if problems:
            more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
            remedy = (
                "Nothing in them can be read: fetch or write them again, or take them out of the list"
                if salvage
                else "Fetch or write them again; to train on the readable part of damaged shards, set `data.on_error: substitute`"
            )
            raise DataError(
                f"{len(problems)} of {len(paths)} shards cannot be used:\n"
                + "\n".join(problems[:10])
                + f"{more}\n{remedy}"
            )
        warn_of_unfinished(paths)
        index = cls(paths, tables, source, formats=read_formats(paths))
        index.lost, index.gone = tuple(lost), gone
        return index

    def __len__(self) -> int:
        return int(self._samples[-1])

    @property
    def shard_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(self._shard_bytes)

    def shard_sizes(self) -> list[int]:
        """Number of samples of each shard."""
        return [int(b - a) for a, b in pairwise(self._samples)]

    def folder_starts(self) -> dict[int, range]:
        """Number of the first shard of each folder and formats -> its samples."""
        first: dict[tuple[str, str], int] = {}
        for number, (shard, formats) in enumerate(zip(self.shards, self.formats, strict=True)):
            first.setdefault((str(shard).rpartition("/")[0], repr(sorted(formats.items()))), number)
        return {number: range(*self._samples[number : number + 2]) for number in first.values()}

    def key(self, ordinal: int) -> str:
        """Key of a sample: folder and file name up to the first dot. May repeat between shards."""
        start, stop = self._span(self._key_ends, ordinal)
        return self._keys[start:stop].tobytes().decode()

    def origin(self, ordinal: int) -> Origin:
        """Where a sample lies; its `ordinal` counts within the shard, and `offset` is its first header."""
        start, _ = self._span(self._members, ordinal)
        shard = self._shard(ordinal)
        offset = int(self._offset[start]) - 512
        return Origin(self.source, self._names[shard], int(ordinal - self._samples[shard]), offset)

    def identity(self, ordinal: int) -> tuple[str, str, int]:
        """(source, shard label, number within the shard): the key of random draws, independent of where the shards are mounted."""
        shard = self._shard(ordinal)
        return self.source, self.labels[shard], int(ordinal - self._samples[shard])

    def place(self, ordinal: int) -> tuple[int, int, int]:
        """Shard number of a sample, and the first and last byte of its members' data there."""
        rows = slice(*self._span(self._members, ordinal))
        first, ends = self._offset[rows], self._offset[rows] + np.maximum(self._size[rows], 1)
        return self._shard(ordinal), int(first.min()), int(ends.max()) - 1

    def members(self, ordinal: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of a sample, in the order of the shard."""
        rows = slice(*self._span(self._members, ordinal))
        names = [self.extensions[i] for i in self._extension[rows].tolist()]
        return list(zip(names, self._offset[rows].tolist(), self._size[rows].tolist(), strict=True))

    def sizes(self) -> dict[str, np.ndarray]:
        """Extension -> sizes in bytes of all its members."""
        return {name: self._size[self._extension == number] for number, name in enumerate(self.extensions)}

    def read(self, ordinal: int, extensions: Collection[str] | None = None) -> RawSample:
        """Bytes of a sample, of the given extensions only (None: all).

        Raises:
            DecodeError: two members of one name ("duplicate"), a member of more than `max_member_bytes` ("too_large"), or bytes
                that differ from the checksum in the sidecar ("checksum").
            DataError: the shard could not be read after several attempts, or has changed since it was indexed.
        """
        fields: dict[str, bytes] = {}
        shard = self._shard(ordinal)
        members = self.members(ordinal)
        for row, (extension, offset, size) in enumerate(members, int(self._members[ordinal])):
            if extensions is not None and extension not in extensions:
                continue
            if extension in fields:
                raise DecodeError("duplicate", "got two members of this name in the sample, wanted one", extension)
            if size > self.max_member_bytes:
                raise DecodeError("too_large", f"got {size} bytes, wanted at most {self.max_member_bytes}", extension)
            data = self.reader.read(shard, offset, size)
            if not self._fits(row, data):
                data = self.reader.read_anew(shard, offset, size)
                if not self._fits(row, data):
                    known = (
                        "differ from their checksum (damage, or a shard that was written anew: then renew its sidecar with "
                        "`mmssl shards index --force`)"
                    )
                    raise DecodeError("checksum", f"the {size} bytes at byte {offset} {known}", extension)
            fields[extension] = data
        extensions = tuple(extension for extension, _, _ in members)
        return RawSample(self.key(ordinal), self.origin(ordinal), fields, extensions, self.formats[shard])

    def close(self) -> None:
        """Close open files; the next read opens them again."""
        self.reader.close()

    def __iter__(self) -> Iterator[RawSample]:
        return (self.read(ordinal) for ordinal in range(len(self)))

    def _fits(self, row: int, data: bytes) -> bool:
        return not self.verify or self._crc[row] < 0 or self._crc[row] == zlib.crc32(data)

    def _shard(self, ordinal: int) -> int:
        return bisect_right(self._samples, ordinal) - 1

    def _span(self, ends: np.ndarray, ordinal: int) -> tuple[int, int]:
        if not 0 <= ordinal < len(self):
            raise IndexError(f"sample {ordinal} of {len(self)}")
        return int(ends[ordinal]), int(ends[ordinal + 1])


class Reader(Protocol):
    """Reads byte ranges of shards by shard number, local or remote. Picklable."""

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes offset ... offset+size-1 of a shard. Raises DataError if it cannot read all of them."""
        ...

    def read_anew(self, number: int, offset: int, size: int) -> bytes:
        """As `read`, but from the storage instead of a cached copy."""
        ...

    def close(self) -> None:
        """Close open files; the next read opens them again."""
        ...


def _labels(shards: Sequence[Path | str]) -> tuple[str, ...]:
    """Paths below the common folder of all shards, without the query of URLs, which may change from day to day."""
    if any(str(shard).startswith(PIPE) for shard in shards):
        return tuple(map(str, shards))
    paths = [Path("/", without_secrets(shard)) if isinstance(shard, str) else shard.absolute() for shard in shards]
    folder = os.path.commonpath([path.parent for path in paths])
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def _digest(labels: Sequence[str], tables: Sequence[ShardTable]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for label, table in zip(labels, tables, strict=True):
        digest.update(f"{label}\0{len(table)}\0{','.join(table.extensions)}\0".encode())
        for array in (table.keys, table.key_ends, table.members, table.extension, table.offset, table.size):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _ends(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _join(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Join [n+1] arrays of cumulative ends, each starting at 0, into one."""
    base = _ends([int(part[-1]) for part in ends])
    return np.concatenate([[0], *(part[1:] + start for part, start in zip(ends, base, strict=False))]).astype(np.int64)
