"""Samples of one shard as a few arrays, made by walking the tar headers or read from a sidecar file next to the shard.

The sidecar `<shard>.index.npz` is a cache: never required, checked against size and time of the shard, holding arrays only.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmssl.core.errors import DataError
from mmssl.data.tar import walk

_log = logging.getLogger(__name__)

SIDECAR_VERSION = 1
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_ARRAYS = {
    "keys": np.uint8,
    "key_ends": np.int64,
    "members": np.int64,
    "extension": np.uint16,
    "offset": np.int64,
    "size": np.int64,
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
    samples: dict[str, int] = {}
    extensions: dict[str, int] = {}
    owner: list[int] = []
    kind: list[int] = []
    place: list[tuple[int, int]] = []
    ignored = 0
    for name, offset, size in walk(shard):
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
    )


def sidecar_path(shard: Path) -> Path:
    """Where the sidecar of a shard lies."""
    return shard.with_name(shard.name + ".index.npz")


def write_sidecar(shard: Path) -> Path:
    """Walk a shard and write its table next to it, whole or not at all.

    Returns:
        The sidecar's path.

    Raises:
        DataError: the shard is damaged, or its folder cannot be written: reading goes on without sidecars, only starts slower.
    """
    target = sidecar_path(shard)
    stamp = _stamp(shard)
    table = scan(shard)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=shard.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            np.savez(
                file,
                version=np.int64(SIDECAR_VERSION),
                stamp=stamp,
                ignored=np.int64(table.ignored),
                extensions=np.array(table.extensions, dtype=np.str_),
                **{name: getattr(table, name) for name in _ARRAYS},
            )
        temporary.chmod(shard.stat().st_mode & 0o666)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {target}: {error}; shards can be read without it, only starting takes longer"
        ) from error
    return target


def _stamp(shard: Path) -> np.ndarray:
    status = shard.stat()
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def _read_sidecar(shard: Path) -> ShardTable | None:
    """The sidecar's table; None without a sidecar, or with one that is stale or damaged (which is logged)."""
    path = sidecar_path(shard)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != SIDECAR_VERSION or not np.array_equal(file["stamp"], _stamp(shard)):
                _log.warning(
                    "%s belongs to another version of the shard and is not used; `mmssl shards index` renews it", path
                )
                return None
            arrays = {name: np.asarray(file[name]) for name in _ARRAYS}
            table = ShardTable(
                extensions=tuple(str(name) for name in file["extensions"]),
                shard_bytes=int(file["stamp"][0]),
                ignored=int(file["ignored"]),
                **arrays,
            )
            _check(table)
    except (OSError, EOFError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged and is not used (%s); `mmssl shards index` renews it", path, error)
        return None
    return table


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
    if (table.offset < 512).any() or (table.size < 0).any() or (table.offset + table.size > table.shard_bytes).any():
        raise ValueError("members lie outside the shard")
    table.keys.tobytes().decode()
