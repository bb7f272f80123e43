"""Auditing one shard: every member is found, read and decoded, and what is wrong is noted with its place."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.curation.figures import digest
from mmssl.data.inspection import Inspection
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.table import split_name
from mmssl.data.shards.tar import BLOCK, Lost, walk


class MemberDecoder(NamedTuple):
    """A modality that reads members of an extension, and whether they may lack it, as mute videos lack sound."""

    modality: Modality
    may_lack: bool = False


Decoders = Mapping[str, tuple[MemberDecoder, ...]]
"""Extension -> what reads such members; nothing: JSON, which is only parsed."""

MAX_MEMBER_BYTES = 1 << 30
CODE = frozenset({"pyd", "pkl", "pickle", "dill", "joblib", "pt", "pth", "so", "dll", "exe", "sh", "py", "pyc"})
SOURCE = "check"  # the data set that origins of an audit belong to


@dataclass
class Findings:
    """What one shard holds.

    Attributes:
        path: the file; name: of the shard, for people; shard_bytes: its size.
        samples: key, offset of the first header and extensions of each.
        sizes: extension -> bytes of each member; decoded: extension -> members that could be decoded.
        examined: samples whose members were read.
        faults: what is wrong.
        inspected: name of a modality, number of the sample, and what the member holds; None: not the modality, as in a mute video.
        ignored: members without an extension.
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


def examine(path: Path, decoders: Decoders, limit: int | None, *, name: str | None = None) -> Findings:
    """Examine a shard; of a damaged one, what is left.

    Args:
        path: the shard.
        decoders: extension -> what decode it; none: JSON, which is only parsed.
        limit: read and decode the first so many samples only.
        name: what to call the shard; default: its path.
    """
    found = Findings(path, name or str(path), path.stat().st_size)
    members: dict[str, list[tuple[str, int, int]]] = {}
    lost: list[Lost] = []
    try:
        for member, offset, size in walk(path, lost):
            parts = split_name(member)
            if parts is None:
                found.ignored += 1
            else:
                members.setdefault(parts[0], []).append((parts[1], offset, size))
    except (DataError, OSError) as error:
        found.faults.append(
            Fault("", Origin(SOURCE, found.name, 0, 0), "tar", "damaged", str(error).replace(str(path), found.name))
        )
    starts = [fields[0][1] for fields in members.values()]
    for span in lost:
        origin = Origin(SOURCE, found.name, sum(start <= span.offset for start in starts), span.offset)
        detail = f"{span.detail}; {span.stop - span.offset} bytes hold nothing that can be read"
        found.faults.append(Fault("", origin, "tar", "damaged", detail))
    if not members and not found.faults:
        found.faults.append(Fault("", Origin(SOURCE, found.name, 0, 0), "tar", "empty", "no samples in it"))
    if members:
        _examine_samples(found, members, decoders, limit)
    return found


def _examine_samples(
    found: Findings,
    members: Mapping[str, list[tuple[str, int, int]]],
    decoders: Decoders,
    limit: int | None,
) -> None:
    with found.path.open("rb", buffering=0) as file:
        for number, (key, fields) in enumerate(members.items()):
            origin = Origin(SOURCE, found.name, number, fields[0][1] - BLOCK)
            names = [extension for extension, _, _ in fields]
            found.samples.append((key, origin.offset, tuple(dict.fromkeys(names))))
            for extension, count in Counter(names).items():
                if extension.rpartition(".")[2] in CODE:
                    detail = "loaders that unpickle it run its author's code; mmssl reads no such member: write the shard without"
                    found.faults.append(Fault(key, origin, extension, "refused", detail))
                if count > 1:
                    detail = f"the sample has {count} members .{extension}, and which one is meant is unknown"
                    found.faults.append(Fault(key, origin, extension, "duplicate", detail))
            for extension, offset, size in fields:
                found.sizes.setdefault(extension, []).append(size)
                if (limit is None or number < limit) and extension in decoders:
                    try:
                        data = _read(file.fileno(), offset, size)
                        _inspect(found, number, extension, data, decoders[extension])
                    except DecodeError as error:
                        found.faults.append(Fault(key, origin, extension, error.reason, error.detail))
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
            items = tuple((shown, digest(one)) for shown, one in held.items)
            found.inspected.append((modality.name, number, replace(held, items=items, channels=None)))
    if first is not None:
        raise first
    found.decoded[extension] += 1
