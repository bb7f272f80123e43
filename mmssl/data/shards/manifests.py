"""What the manifests beside shards say: of which packing a shard is, and the formats of its members."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.writer import Manifest, read_manifest

_log = logging.getLogger(__name__)

Formats = Mapping[str, str]
"""Extension -> name of the format of such members; see `Manifest`."""
SET_TYPE_FILE = "dataset_type.txt"
"""File of CLIP_benchmark's layout, above the folders of splits or beside shards: `retrieval` or `multilabel`; without it, a sample
has one class."""
MULTI_LABEL = "multilabel"
FORMATS_OF_TYPES: Mapping[str, Formats] = {"retrieval": {"txt": "lines"}, MULTI_LABEL: {"npy": "multi_label"}}
"""Type of the set -> formats of its members: each line of a text is a caption; a `.npy` is read by the modality `multi_label`."""


def find_manifests(shards: Sequence[Path]) -> list[Manifest | None]:
    """The manifest of each shard, in its folder or the one above (of several splits); None: none that lists the shard.

    Other files of that name, of other programs, count for nothing.
    """

    @cache
    def listed(folder: Path) -> tuple[Manifest, set[Path]] | None:
        try:
            manifest = read_manifest(folder)
        except (DataError, OSError):
            return None
        return (manifest, set(manifest.paths)) if manifest is not None else None

    def find(shard: Path) -> Manifest | None:
        near = [listed(folder) for folder in shard.parents[:2]]
        return next((found[0] for found in near if found is not None and shard in found[1]), None)

    return [find(shard.absolute()) for shard in shards]


def read_formats(shards: Sequence[Path]) -> tuple[Formats, ...]:
    """The formats of the members of each shard, as its manifest or the layout of its folder says; empty: nothing says.

    Shards of a folder that is not finished are a warning.
    """
    found = find_manifests(shards)
    for folder in dict.fromkeys(one.folder for one in found if one is not None and not one.complete):
        _log.warning("%s is unfinished: shards are missing; give the command that makes it again", folder)
    pairs = zip(shards, found, strict=True)
    return tuple(
        _of_layout(shard) | (dict(manifest.formats) if manifest is not None else {}) for shard, manifest in pairs
    )


def _of_layout(shard: Path) -> dict[str, str]:
    """The formats that the type of the set says, see `FORMATS_OF_TYPES`."""
    file = next((found for folder in shard.absolute().parents[:2] if (found := folder / SET_TYPE_FILE).is_file()), None)
    return dict(FORMATS_OF_TYPES.get(file.read_text(errors="replace").strip(), {})) if file is not None else {}
