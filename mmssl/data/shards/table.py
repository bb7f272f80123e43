"""Index of one shard as a few arrays, made from the tar headers or read from a sidecar file next to the shard.

The sidecar `<shard>.index.npz` is a cache: optional, checked against size and time of the shard, and holds arrays only.
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
    """Index of a shard: n samples with m members in all, sorted by sample.

    Attributes:
        extensions: the distinct extensions; `extension` has numbers into this list.
        keys: UTF-8 bytes of all keys; key_ends: [n+1] offsets of their ends, starting at 0.
        members: [n+1] first member of each sample; extension, offset, size: [m], of each member.
        shard_bytes: size of the shard.
        ignored: number of files without an extension, which belong to no sample.
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


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member name into (key, extension) by WebDataset's rule: the key is the folder and the base name up to its first
    dot, the rest the extension in lower case. None: the name has no extension.
    """
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def load_table(shard: Path) -> ShardTable:
    """Load the table of a shard, from a valid sidecar or from the shard itself.

    Raises:
        DataError: the shard is damaged or holds no sample.
        OSError: it cannot be read.
    """
    table = _read_sidecar(shard)
    return table if table is not None else scan(shard)


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
        what = f"its {ignored} files have names without an extension" if ignored else "the tar file is empty"
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


def sidecar_path(shard: Path) -> Path:
    """Path of the sidecar of a shard."""
    return shard.with_name(shard.name + ".index.npz")


def write_sidecar(shard: Path) -> Path:
    """Write the sidecar of a shard: its table with checksums of all members, atomically.

    Returns:
        The sidecar's path.

    Raises:
        DataError: the shard is damaged, or its folder is not writable. Sidecars are optional: they only make the start faster.
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
            f"cannot write {target}: {error}; sidecars are optional, but the start takes longer without"
        ) from error
    return target


class StaleSidecar(ValueError):
    """The sidecar belongs to another version of the shard, or of mmssl."""


def save_sidecar(file: IO[bytes], table: ShardTable, status: os.stat_result) -> None:
    """Write a table as a sidecar, with size and modification time of the shard."""
    np.savez(
        file,
        version=np.int64(SIDECAR_VERSION),
        stamp=np.array([status.st_size, status.st_mtime_ns], np.int64),
        ignored=np.int64(table.ignored),
        extensions=np.array(table.extensions, dtype=np.str_),
        **{name: getattr(table, name) for name in _ARRAYS},
    )


def load_sidecar(file: IO[bytes] | Path, *stamp: int | None) -> ShardTable:
    """Read the table in a sidecar.

    Args:
        stamp: size of the shard, and its modification time if local; None: unknown.

    Raises:
        StaleSidecar: it belongs to another version of the shard. ValueError: it is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            saved = arrays["stamp"].tolist()
            fits = all(mine in (None, its) for mine, its in zip(stamp, saved, strict=False))
            if int(arrays["version"]) != SIDECAR_VERSION or not fits:
                raise StaleSidecar(
                    f"the sidecar is for another version of the shard ({saved[0]} bytes, now {stamp[0]}) or of mmssl"
                )
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
        _log.warning(
            "ignoring %s, which belongs to another version of the shard; renew it with `mmssl shards index`", path
        )
    except (OSError, ValueError) as error:
        _log.warning("ignoring %s, which is damaged (%s); renew it with `mmssl shards index`", path, error)
    return None


def _check(table: ShardTable) -> None:
    """Refuse arrays of a sidecar that point outside the shard or outside each other."""
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
            raise ValueError("the ends of samples do not fit the arrays")
    if not len(table.extension) == len(table.offset) == len(table.size) or table.extension.max() >= len(
        table.extensions
    ):
        raise ValueError("the arrays of members differ in length, or have unknown extensions")
    if len(table.crc) != len(table.size) or table.crc.min() < -1 or table.crc.max() >= 1 << 32:
        raise ValueError("the checksums are not one CRC-32 for each member")
    if (table.offset < 512).any() or (table.size < 0).any() or (table.offset + table.size > table.shard_bytes).any():
        raise ValueError("members lie outside the shard")
    table.keys.tobytes().decode()


def slice_starts(shards: Sequence[int], size: int) -> np.ndarray:
    """First sample of each slice, [slices] int64; each shard is cut into even slices of about `size` samples."""
    starts, first = [], 0
    for count in shards:
        parts = max(1, round(count / size))
        starts.append(first + np.arange(parts) * count // parts)
        first += count
    return np.concatenate(starts)
