"""Sidecar of one shard: its index with checksums of all members, in a file next to it.

The sidecar `<shard>.index.npz` is optional and holds arrays only. It is compared with the size and time of the shard, and with its
tar headers where the time differs, as after a copy; members are compared with their checksums when they are read.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from mmssl.core.errors import DataError, os_words
from mmssl.data.shards.table import ShardTable, checksums, members_of, scan

_log = logging.getLogger(__name__)

SIDECAR_VERSION = 2
_ARRAYS = {
    "keys": np.uint8,
    "key_ends": np.int64,
    "members": np.int64,
    "extension": np.uint16,
    "offset": np.int64,
    "size": np.int64,
    "crc": np.int64,
}


def load_table(shard: Path) -> ShardTable:
    """Load the table of a shard, from a valid sidecar or from the shard itself.

    Raises:
        DataError: the shard is damaged or holds no sample.
        OSError: it cannot be read.
    """
    table = _read_sidecar(shard)
    return table if table is not None else scan(shard)


def sidecar_path(shard: Path) -> Path:
    """Path of the sidecar of a shard."""
    return shard.with_name(shard.name + ".index.npz")


def write_sidecar(shard: Path, *, force: bool = False) -> Path:
    """Write the sidecar of a shard: its table with checksums of all members, atomically.

    Args:
        shard: the tar file.
        force: replace a sidecar that disagrees with the shard, with a warning that names it. It may be the shard that is
            damaged: then its damage would become what later readings are compared with.

    Returns:
        The sidecar's path.

    Raises:
        DataError: the shard is damaged, disagrees with its sidecar, or its folder is not writable. Sidecars are optional: without
            one the start takes longer, and damage inside members is not noticed.
    """
    target = sidecar_path(shard)
    status = shard.stat()
    table = scan(shard)
    temporary = None
    try:
        table = checksums(shard, table)
        wrong = _disagreements(target, table)
        told = f"{shard} disagrees with its sidecar: " + "".join(wrong[:1])
        told += f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        if wrong and not force:
            raise DataError(
                f"{told}; fetch the shard again, or, if it was written anew, replace the sidecar with `mmssl shards index --force`"
            )
        with tempfile.NamedTemporaryFile(dir=shard.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            save_sidecar(file, table, status)
        temporary.chmod(status.st_mode & 0o666)
        os.replace(temporary, target)
        if wrong:
            _log.warning("%s; the sidecar was replaced", told)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {target}: {os_words(error)}; sidecars are optional, but the start takes longer without"
        ) from error
    return target


class StaleSidecar(ValueError):
    """The sidecar belongs to another version of the shard, or of mmssl."""


class OtherTime(StaleSidecar):
    """The shard has the size that the sidecar says, and another modification time: it was copied, or written again."""


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
            fits = [mine in (None, its) for mine, its in zip(stamp, saved, strict=False)]
            if int(arrays["version"]) != SIDECAR_VERSION:
                raise StaleSidecar("the sidecar is for another version of mmssl")
            if not all(fits):
                raise (OtherTime if fits[0] else StaleSidecar)(
                    f"the sidecar is for a shard of {saved[0]} bytes, and it has {stamp[0]} now"
                    if not fits[0]
                    else "the sidecar is for a shard of this size and another modification time"
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
    """The sidecar's table; None without a sidecar, or with one that is stale or damaged (which is logged).

    A copy of a shard (`cp`, `rsync`) has another modification time. Its tar headers are compared with the sidecar, and its members
    with the checksums when they are read.
    """
    path = sidecar_path(shard)
    if not path.exists():
        return None
    status = shard.stat()
    try:
        try:
            return load_sidecar(path, status.st_size, status.st_mtime_ns)
        except OtherTime:
            table = load_sidecar(path, status.st_size)
            wrong = table_differences(table, scan(shard))
            if not wrong:
                return table
            raise StaleSidecar(wrong[0]) from None
    except StaleSidecar as error:
        _log.warning(
            "ignoring %s, so members are read without checksums: %s; fetch the shard again, or, if it was written anew, renew "
            "the sidecar with `mmssl shards index --force`",
            path,
            error,
        )
    except (OSError, ValueError) as error:
        _log.warning("ignoring %s, which is damaged (%s); renew it with `mmssl shards index`", path, error)
    return None


def table_differences(saved: ShardTable, found: ShardTable) -> list[str]:
    """What differs between the table in a sidecar and that of the shard, in words; checksums where both have them."""
    before = {(key, extension): (offset, size, crc) for key, extension, offset, size, crc in members_of(saved)}
    now = {(key, extension): (offset, size, crc) for key, extension, offset, size, crc in members_of(found)}
    wrong = [f"it has no member {key}.{extension}" for key, extension in before if (key, extension) not in now]
    wrong += [f"it has a member {key}.{extension} more" for key, extension in now if (key, extension) not in before]
    for name, (offset, size, crc) in before.items():
        if name in now and now[name][:2] != (offset, size):
            wrong.append(f"{'.'.join(name)} has {now[name][1]} bytes at byte {now[name][0]}, not {size} at {offset}")
        elif name in now and -1 not in (crc, now[name][2]) and now[name][2] != crc:
            wrong.append(f"{'.'.join(name)} differs from its checksum")
    return wrong


def _disagreements(sidecar: Path, table: ShardTable) -> list[str]:
    """What differs between an existing sidecar and a table with checksums; nothing if there is none that can be read."""
    try:
        return table_differences(load_sidecar(sidecar), table) if sidecar.exists() else []
    except (OSError, ValueError):
        return []


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
