"""Samples of one shard as a few arrays, made by walking the tar headers or read from a sidecar file next to the shard.

The sidecar `<shard>.index.npz` is a cache: never required, checked against size and time of the shard, holding arrays only.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from mmssl.core.errors import DataError
from mmssl.data.shards.tar import Member, walk

_log = logging.getLogger(__name__)

SIDECAR_VERSION = 2
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_ARRAYS = {
    "keys": np.uint8,
    "key_ends": np.int64,
    "members": np.int64,
    "extension": np.uint16,
    "offset": np.int64,
    "size": np.int64,
    "crc": np.int64,
}


@dataclass(frozen=True)
class ShardTable:
    """n samples with m members in all, sorted by sample.

    Attributes:
        extensions: names that `extension` counts.
        keys: UTF-8 bytes of all keys; key_ends: [n+1] where each begins and ends.
        members: [n+1] first member of each sample; extension, offset, size: [m], of each member.
        shard_bytes: size of the shard.
        ignored: regular files that are no member of a sample, because their names have no extension.
        crc: [m] CRC-32 of the data of each member, -1 where it is not known.
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


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) by WebDataset's rule: the key is the folder and the base name up to its first dot, the rest the extension
    in lower case. None: no part of a sample.
    """
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def load_table(shard: Path) -> ShardTable:
    """The table of a shard, from a valid sidecar or from the shard itself.

    Raises:
        DataError: the shard is damaged or holds no sample.
        OSError: it cannot be read.
    """
    table = _read_sidecar(shard)
    return table if table is not None else scan(shard)


def scan(shard: Path) -> ShardTable:
    """Walk a shard. Members of one key belong together even where others stand between them.

    Raises:
        DataError: the shard is damaged or holds no sample.
        OSError: it cannot be read.
    """
    return make_table(shard, walk(shard))


def make_table(shard: Path, found: Iterable[Member]) -> ShardTable:
    """The table of the members that were found in a shard; folders of WebDataset's own (`__meta__`) are left out.

    Raises:
        DataError: no sample among them. What `found` raises.
    """
    samples: dict[str, int] = {}
    extensions: dict[str, int] = {}
    owner: list[int] = []
    kind: list[int] = []
    place: list[tuple[int, int]] = []
    ignored = 0
    for name, offset, size in found:
        if _META.match(name):
            continue
        parts = split_name(name)
        if parts is None:
            ignored += 1
            continue
        owner.append(samples.setdefault(parts[0], len(samples)))
        kind.append(extensions.setdefault(parts[1], len(extensions)))
        place.append((offset, size))
    if not samples:
        what = f"its {ignored} files have names without an extension" if ignored else "it is a tar file without files"
        raise DataError(f"{shard} holds no sample: {what}; write it again, or take it off the list")
    if len(extensions) > np.iinfo(np.uint16).max:
        raise DataError(
            f"{shard} has {len(extensions)} different extensions, as from names with dots in the key, such as 'photo.17.3.jpg'"
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


def sidecar_path(shard: Path) -> Path:
    """Where the sidecar of a shard lies."""
    return shard.with_name(shard.name + ".index.npz")


def write_sidecar(shard: Path) -> Path:
    """Walk a shard and write its table, with checksums of all members, next to it, whole or not at all.

    Returns:
        The sidecar's path.

    Raises:
        DataError: the shard is damaged, or its folder cannot be written: reading goes on without sidecars, only starts slower.
    """
    target = sidecar_path(shard)
    status = shard.stat()
    table = scan(shard)
    temporary = None
    try:
        table = checksums(shard, table)
        with tempfile.NamedTemporaryFile(dir=shard.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            save_sidecar(file, table, status)
        temporary.chmod(status.st_mode & 0o666)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {target}: {error}; shards can be read without it, only starting takes longer"
        ) from error
    return target


class StaleSidecar(ValueError):
    """A sidecar of another version of the shard, or of mmssl."""


def save_sidecar(file: IO[bytes], table: ShardTable, status: os.stat_result) -> None:
    """Write a table as a sidecar; size and time of the shard go with it."""
    np.savez(
        file,
        version=np.int64(SIDECAR_VERSION),
        stamp=np.array([status.st_size, status.st_mtime_ns], np.int64),
        ignored=np.int64(table.ignored),
        extensions=np.array(table.extensions, dtype=np.str_),
        **{name: getattr(table, name) for name in _ARRAYS},
    )


def load_sidecar(file: IO[bytes] | Path, *stamp: int | None) -> ShardTable:
    """The table in a sidecar.

    Args:
        stamp: size of the shard, and time where that means anything; None: unknown.

    Raises:
        StaleSidecar: it is of another version of the shard. ValueError: it is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            saved = arrays["stamp"].tolist()
            fits = all(mine in (None, its) for mine, its in zip(stamp, saved, strict=False))
            if int(arrays["version"]) != SIDECAR_VERSION or not fits:
                raise StaleSidecar(f"it was made for a shard of {saved[0]} bytes, now {stamp[0]}, or by another mmssl")
            table = ShardTable(
                extensions=tuple(str(name) for name in arrays["extensions"]),
                shard_bytes=int(saved[0]),
                ignored=int(arrays["ignored"]),
                **{name: np.asarray(arrays[name]) for name in _ARRAYS},
            )
            _check(table)
    except (EOFError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return table


def _read_sidecar(shard: Path) -> ShardTable | None:
    """The sidecar's table; None without a sidecar, or with one that is stale or damaged (which is logged)."""
    path = sidecar_path(shard)
    if not path.exists():
        return None
    status = shard.stat()
    try:
        return load_sidecar(path, status.st_size, status.st_mtime_ns)
    except StaleSidecar:
        _log.warning("%s belongs to another version of the shard and is not used; `mmssl shards index` renews it", path)
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged and is not used (%s); `mmssl shards index` renews it", path, error)
    return None


def _check(table: ShardTable) -> None:
    """Refuse arrays that point outside the shard or outside each other: they come from a file."""
    for name, kind in _ARRAYS.items():
        array = getattr(table, name)
        if array.dtype != kind or array.ndim != 1:
            raise ValueError(f"array {name!r} has type {array.dtype} and {array.ndim} dimensions")
    for ends, total in ((table.key_ends, len(table.keys)), (table.members, len(table.extension))):
        if (
            len(ends) != len(table.members)
            or len(ends) < 2
            or ends[0] != 0
            or ends[-1] != total
            or (np.diff(ends) < 1).any()
        ):
            raise ValueError("the ends of samples do not fit")
    if not len(table.extension) == len(table.offset) == len(table.size) or table.extension.max() >= len(
        table.extensions
    ):
        raise ValueError("the members do not fit")
    if len(table.crc) != len(table.size) or table.crc.min() < -1 or table.crc.max() >= 1 << 32:
        raise ValueError("the checksums do not fit")
    if (table.offset < 512).any() or (table.size < 0).any() or (table.offset + table.size > table.shard_bytes).any():
        raise ValueError("members lie outside the shard")
    table.keys.tobytes().decode()


def slice_starts(shards: Sequence[int], size: int) -> np.ndarray:
    """First sample of each slice: shards cut into even parts of about `size` samples, [slices] int64."""
    starts, first = [], 0
    for count in shards:
        parts = max(1, round(count / size))
        starts.append(first + np.arange(parts) * count // parts)
        first += count
    return np.concatenate(starts)
