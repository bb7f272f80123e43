"""Auditing one shard: find, read and decode every member, and record each fault with its shard, key and offset."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmssl.core.errors import DataError, os_words
from mmssl.core.sample import Fault, Origin
from mmssl.curation.figures import bytes_digest
from mmssl.data.inspection import Inspection
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.sidecar import load_sidecar, sidecar_path
from mmssl.data.shards.table import ShardTable, is_metadata, members_of, split_name
from mmssl.data.shards.tar import BLOCK, Lost, walk


class MemberDecoder(NamedTuple):
    """A modality that decodes members of an extension, and whether members may lack it, as silent videos lack an audio track."""

    modality: Modality
    may_lack: bool = False


Decoders = Mapping[str, tuple[MemberDecoder, ...]]
"""Extension -> decoders of such members; an empty tuple: JSON, which is only parsed."""

MAX_MEMBER_BYTES = 1 << 30
CODE = frozenset({"pyd", "pkl", "pickle", "dill", "joblib", "pt", "pth", "so", "dll", "exe", "sh", "py", "pyc"})
SOURCE = "check"  # the source name in the origins of an audit


@dataclass
class Findings:
    """Audit results of one shard.

    Attributes:
        path: the file; name: of the shard in messages; shard_bytes: its size.
        samples: key, offset of the first header and extensions of each.
        sizes: extension -> bytes of each member; decoded: extension -> members that could be decoded.
        examined: samples whose members were read.
        faults: damaged spans, and members that are missing, duplicated, too large or do not decode.
        inspected: modality name, number of the sample, and the inspection; None: the member lacks the modality, as a silent video.
        ignored: members that belong to no sample, see `split_name`.
        checksums: whether the members could be compared with the checksums of a sidecar.
    """

    path: Path
    name: str
    shard_bytes: int = 0
    samples: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    decoded: Counter[str] = field(default_factory=Counter)
    examined: int = 0
    faults: list[Fault] = field(default_factory=list)
    inspected: list[tuple[str, int, Inspection | None]] = field(default_factory=list)
    ignored: int = 0
    checksums: bool = False


def examine_shard(
    path: Path, decoders: Decoders, limit: int | None, *, name: str | None = None, table: ShardTable | None = None
) -> Findings:
    """Audit one shard: list, read and decode its members; of a damaged shard, the readable part.

    Args:
        path: the shard.
        decoders: extension -> its decoders; empty: JSON, which is only parsed.
        limit: read and decode only the first `limit` samples.
        name: what to call the shard; default: its path.
        table: its members, perhaps with checksums; None: those that its headers list.
    """
    found = Findings(path, name or str(path), path.stat().st_size)
    members: dict[str, list[tuple[str, int, int]]] = {}
    if table is None:
        _list_members(found, members)
    else:
        found.ignored = table.ignored
        for key, extension, offset, size, _ in members_of(table):
            members.setdefault(key, []).append((extension, offset, size))
    known = _known_checksums(found, members)
    if table is not None:  # its faults are the caller's to report
        found.faults.clear()
        known |= {(key, extension): crc for key, extension, _, _, crc in members_of(table) if crc >= 0}
    found.checksums = bool(known)
    if members:
        _examine_samples(found, members, decoders, limit, known)
    return found


def _list_members(found: Findings, members: dict[str, list[tuple[str, int, int]]]) -> None:
    """Add the members that the headers list, and the damage of the archive."""
    lost: list[Lost] = []
    try:
        for member, offset, size in walk(found.path, lost):
            parts = split_name(member)
            if is_metadata(member):
                continue
            if parts is None:
                found.ignored += 1
            else:
                members.setdefault(parts[0], []).append((parts[1], offset, size))
    except (DataError, OSError) as error:
        words = f"{found.path}: {os_words(error)}" if isinstance(error, OSError) else str(error)
        words = words.replace(str(found.path), found.name)
        found.faults.append(Fault("", Origin(SOURCE, found.name, 0, 0), "tar", "damaged", words))
    starts = [fields[0][1] for fields in members.values()]
    for span in lost:
        origin = Origin(SOURCE, found.name, sum(start <= span.offset for start in starts), span.offset)
        detail = f"{span.detail}; {span.stop - span.offset} bytes are unreadable"
        found.faults.append(Fault("", origin, "tar", "damaged", detail))
    if not members and not found.faults:
        found.faults.append(Fault("", Origin(SOURCE, found.name, 0, 0), "tar", "empty", "no samples in it"))


def _known_checksums(found: Findings, members: Mapping[str, list[tuple[str, int, int]]]) -> dict[tuple[str, str], int]:
    """(Key, extension) of a member -> its CRC-32 in the sidecar; empty without one for a shard of this size.

    Adds a fault if the sidecar is of another shard, unless damage of the archive explains why its members are not there.
    """
    sidecar = sidecar_path(found.path)
    try:
        table = load_sidecar(sidecar)
    except (OSError, ValueError):
        return {}
    known = {(key, extension): crc for key, extension, _, _, crc in members_of(table)}
    there = {(key, extension) for key, fields in members.items() for extension, _, _ in fields}
    lacking, size = known.keys() - there, table.shard_bytes
    if size != found.shard_bytes or (known.keys() != there and not found.faults):
        named = f", such as {'.'.join(min(lacking))}" if lacking else ""
        detail = (
            f"{sidecar} is for a shard of {size} bytes, and this one has {found.shard_bytes}; it lists {len(lacking)} members that "
            f"are not there{named}, and lacks {len(there - known.keys())}: fetch the shard again, or, if it was written anew, "
            "renew the sidecar with `mmssl shards index --force`"
        )
        found.faults.append(Fault("", Origin(SOURCE, found.name, 0, 0), "sidecar", "stale", detail))
    if size != found.shard_bytes or not known.keys() & there:
        return {}
    return {name: crc for name, crc in known.items() if crc >= 0}


def _examine_samples(
    found: Findings,
    members: Mapping[str, list[tuple[str, int, int]]],
    decoders: Decoders,
    limit: int | None,
    known: Mapping[tuple[str, str], int],
) -> None:
    with found.path.open("rb", buffering=0) as file:
        for number, (key, fields) in enumerate(members.items()):
            origin = Origin(SOURCE, found.name, number, fields[0][1] - BLOCK)
            names = [extension for extension, _, _ in fields]
            found.samples.append((key, origin.offset, tuple(dict.fromkeys(names))))
            for extension, count in Counter(names).items():
                if extension.rpartition(".")[2] in CODE:
                    detail = "unpickling runs arbitrary code, so mmssl does not read it: write the shard without such members"
                    found.faults.append(Fault(key, origin, extension, "refused", detail))
                if count > 1:
                    detail = f"got {count} members .{extension} in the sample, wanted one"
                    found.faults.append(Fault(key, origin, extension, "duplicate", detail))
            for extension, offset, size in fields:
                found.sizes.setdefault(extension, []).append(size)
                crc = known.get((key, extension))
                if (limit is None or number < limit) and (extension in decoders or crc is not None):
                    try:
                        data = _read(file.fileno(), offset, size)
                        if crc not in (None, zlib.crc32(data)):
                            raise DecodeError(
                                "checksum", f"the {size} bytes at byte {offset} differ from the sidecar's checksum"
                            )
                        if extension in decoders:
                            _inspect(found, number, extension, data, decoders[extension])
                    except DecodeError as error:
                        found.faults.append(Fault(key, origin, extension, error.reason, error.detail))
                    except DataError as error:  # the decoder of the format is not installed
                        found.faults.append(Fault(key, origin, extension, "undecodable", str(error)))
            found.examined += limit is None or number < limit


def _read(fd: int, offset: int, size: int) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise DecodeError("too_large", f"got {size} bytes, wanted at most {MAX_MEMBER_BYTES}")
    return os.pread(fd, size, offset)


def _inspect(found: Findings, number: int, extension: str, data: bytes, decoders: tuple[MemberDecoder, ...]) -> None:
    if not decoders:
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DecodeError("undecodable", f".{extension} is not JSON: {error}") from error
    first: DecodeError | None = (
        None  # of the modalities that read this member; what the others hold is counted all the same
    )
    for modality, may_lack in decoders:
        try:
            held = modality.inspect(data, extension)
        except DecodeError as error:
            if error.reason != "missing" or not may_lack:
                first = first or error
                continue
            found.inspected.append((modality.name, number, None))
        else:
            # Neither pixels nor whole files are kept until the shard is done.
            items = tuple((shown, bytes_digest(one)) for shown, one in held.items)
            found.inspected.append((modality.name, number, replace(held, items=items, channels=None)))
            if held.flags:
                try:
                    modality.decode(data, extension)  # as a run does: what it refuses, such as NaN, is a fault
                except DecodeError as error:
                    first = first or error
    if first is not None:
        raise first
    found.decoded[extension] += 1
