"""Auditing one shard: every member is found, read and decoded, and what is wrong is noted with its place."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.data.image import ImageModality
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shard_table import split_name
from mmssl.data.tar import BLOCK, walk
from mmssl.data.text import TextModality

MAX_MEMBER_BYTES = 1 << 30
SOURCE = "check"  # the data set that origins of an audit belong to


@dataclass
class Findings:
    """What one shard holds.

    Attributes:
        path: the shard.
        samples: key, offset of the first header and extensions of each.
        sizes: extension -> bytes of each member; decoded: extension -> members that could be decoded.
        examined: samples whose members were read.
        faults: what is wrong.
        images: SHA-256, height, width and number of the sample of each picture.
        captions: text and number of the sample of each caption.
        ignored: members without an extension.
    """

    path: Path
    samples: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    decoded: Counter[str] = field(default_factory=Counter)
    examined: int = 0
    faults: list[Fault] = field(default_factory=list)
    images: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    captions: list[tuple[str, int]] = field(default_factory=list)
    ignored: int = 0


def examine(path: Path, decoders: Mapping[str, Modality | None], limit: int | None) -> Findings:
    """Examine a shard; of a damaged one, what stands before the damage.

    Args:
        path: the shard.
        decoders: extension -> what decodes it; None: JSON, which is only parsed.
        limit: read and decode the first so many samples only.
    """
    found = Findings(path)
    members: dict[str, list[tuple[str, int, int]]] = {}
    end = 0
    try:
        for name, offset, size in walk(path):
            end = offset + -(-size // BLOCK) * BLOCK
            parts = split_name(name)
            if parts is None:
                found.ignored += 1
            else:
                members.setdefault(parts[0], []).append((parts[1], offset, size))
    except (DataError, OSError) as error:
        # Origin: the first sample that is lost, and where the archive stops making sense.
        found.faults.append(Fault("", Origin(SOURCE, str(path), len(members), end), "tar", "damaged", str(error)))
    if not members and not found.faults:
        found.faults.append(Fault("", Origin(SOURCE, str(path), 0, 0), "tar", "empty", "no samples in it"))
    if members:
        _examine_samples(found, members, decoders, limit)
    return found


def _examine_samples(
    found: Findings,
    members: Mapping[str, list[tuple[str, int, int]]],
    decoders: Mapping[str, Modality | None],
    limit: int | None,
) -> None:
    with found.path.open("rb", buffering=0) as file:
        for number, (key, fields) in enumerate(members.items()):
            origin = Origin(SOURCE, str(found.path), number, fields[0][1] - BLOCK)
            names = [extension for extension, _, _ in fields]
            found.samples.append((key, origin.offset, tuple(dict.fromkeys(names))))
            for extension, count in Counter(names).items():
                if count > 1:
                    detail = f"the sample has {count} members .{extension}, and which one is meant is unknown"
                    found.faults.append(Fault(key, origin, extension, "duplicate", detail))
            for extension, offset, size in fields:
                found.sizes.setdefault(extension, []).append(size)
                if (limit is None or number < limit) and extension in decoders:
                    try:
                        _decode(found, number, extension, _read(file.fileno(), offset, size), decoders[extension])
                    except DecodeError as error:
                        found.faults.append(Fault(key, origin, extension, error.reason, error.detail))
            found.examined += limit is None or number < limit


def _read(fd: int, offset: int, size: int) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise DecodeError("too_large", f"got {size} bytes, wanted at most {MAX_MEMBER_BYTES}")
    return os.pread(fd, size, offset)


def _decode(found: Findings, number: int, extension: str, data: bytes, modality: Modality | None) -> None:
    if modality is None:
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DecodeError("undecodable", f".{extension} is not JSON: {error}") from error
    else:
        value: Any = modality.decode(data, extension)
        if isinstance(modality, ImageModality):
            found.images.append((hashlib.sha256(data).digest(), value.shape[0], value.shape[1], number))
        elif isinstance(modality, TextModality):
            found.captions.extend((caption, number) for caption in value)
    found.decoded[extension] += 1
