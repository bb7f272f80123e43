"""Salvage damaged shards: index the readable part, and list every lost sample and span of bytes.

An earlier sidecar beside the shard tells the samples that the shard should have, and the checksums of their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.data.shards.sidecar import load_sidecar, load_table, sidecar_path
from mmssl.data.shards.table import ShardTable, make_table
from mmssl.data.shards.tar import Lost, walk

_GONE = "the sidecar lists it, but the shard lacks it (if it was written anew, use `mmssl shards index --force`)"


def salvage_table(shard: Path, source: str) -> tuple[ShardTable, list[Fault], int]:
    """The table of a possibly damaged shard, and its losses: spans of bytes, and samples that a sidecar lists.

    Args:
        shard: the file.
        source: name of the data set, for the faults.

    Returns:
        Table, faults, and number of lost samples: counted by the sidecar, or else estimated from the size of the spans.

    Raises:
        DataError: not a tar archive, or one without a readable sample. OSError: the file cannot be read.
    """
    lost: list[Lost] = []
    try:
        table = load_table(shard)
        if (table.crc >= 0).any():  # the sidecar belongs to this file: its checksums find all damage
            return table, [], 0
    except DataError:
        table = make_table(shard, walk(shard, lost))
    before = _before(shard, table)
    faults = list(_spans(shard, source, lost, table))
    mean = table.shard_bytes / len(table)
    if before is None:
        return table, faults, sum(max(1, round((span.stop - span.offset) / mean)) for span in lost)
    missing = list(_missing(shard, source, table, before))
    return replace(table, crc=_known(table, before)), faults + missing, len({fault.key for fault in missing})


def refuse_large_losses(lost: Sequence[Fault], gone: int, samples: int, max_failures: float) -> None:
    """Refuse a data set whose damaged shards have lost more than `max_failures`.

    Args:
        lost: faults of all its shards. gone: number of lost samples. samples: number of readable samples.
        max_failures: largest share of lost samples allowed.

    Raises:
        DataError: a larger share is lost.
    """
    if gone > max_failures * (gone + samples):
        shown = "\n".join(f"  {fault}" for fault in lost[:5])
        more = f"\n  ... and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise DataError(
            f"damaged shards have lost about {gone} of {gone + samples} samples, wanted at most a share of "
            f"{max_failures:g} (`max_failures`):\n{shown}{more}\nFetch or write these shards again."
        )


def _before(shard: Path, table: ShardTable) -> ShardTable | None:
    """The table of an earlier state of the shard, from its sidecar; None if there is none, or it has no sample in common."""
    try:
        before = load_sidecar(sidecar_path(shard))
    except (OSError, ValueError):
        return None
    return before if set(_keys(before)) & set(_keys(table)) else None


def _spans(shard: Path, source: str, lost: Iterable[Lost], table: ShardTable) -> Iterable[Fault]:
    for span in lost:
        ordinal = int(np.searchsorted(table.offset[table.members[:-1]], span.offset))
        detail = f"{span.detail}; {span.stop - span.offset} bytes are skipped"
        yield Fault("", Origin(source, str(shard), ordinal, span.offset), "tar", "damaged", detail)


def _missing(shard: Path, source: str, table: ShardTable, before: ShardTable) -> Iterable[Fault]:
    """Faults for members that the sidecar lists and the shard lacks; one for a sample that lacks all."""
    there: dict[str, set[str]] = {}
    for key, extension, *_ in _members(table):
        there.setdefault(key, set()).add(extension)
    known: dict[str, set[str]] = {}
    for key, extension, *_ in _members(before):
        known.setdefault(key, set()).add(extension)
    for ordinal, (key, extensions) in enumerate(known.items()):
        origin = Origin(source, str(shard), ordinal, int(before.offset[before.members[ordinal]]) - 512)
        gone = sorted(extensions - there[key]) if key in there else ["tar"]
        for extension in gone:
            yield Fault(key, origin, extension, "lost", _GONE)


def _known(table: ShardTable, before: ShardTable) -> np.ndarray:
    """Checksums [m] of members whose name and size are those of the sidecar."""
    known = {(key, extension): (size, crc) for key, extension, size, crc in _members(before)}
    crc = []
    for key, extension, size, _ in _members(table):
        was, value = known.get((key, extension), (size, -1))
        # A member of another size gets a value that no CRC-32 has, so that reading it is a fault.
        crc.append(value if was == size else 1 << 32)
    return np.array(crc, np.int64)


def _keys(table: ShardTable) -> list[str]:
    data = table.keys.tobytes()
    return [data[start:stop].decode() for start, stop in pairwise(table.key_ends.tolist())]


def _members(table: ShardTable) -> Iterable[tuple[str, str, int, int]]:
    for key, (start, stop) in zip(_keys(table), pairwise(table.members.tolist()), strict=True):
        for row in range(start, stop):
            yield key, table.extensions[table.extension[row]], int(table.size[row]), int(table.crc[row])
