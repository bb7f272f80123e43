"""What the manifests beside shards say: of which packing a shard is, and the formats of its members."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.writer import UNFINISHED, Manifest, read_manifest

_log = logging.getLogger(__name__)

Formats = Mapping[str, str]
"""Extension -> name of the format of such members; see `Manifest`."""
SET_TYPE_FILE = "dataset_type.txt"
"""File of CLIP_benchmark's layout, above the folders of splits or beside shards: `retrieval` or `multilabel`; without it, a sample
has one class."""
MULTI_LABEL = "multilabel"
SHARDS_ARE_MISSING = "shards are missing; give the command that makes it again"
"""What an unfinished folder of shards means, and what to do."""
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
    """The formats of the members of each shard, as its manifest or the layout of its folder says; empty: nothing says."""
    pairs = zip(shards, find_manifests(shards), strict=True)
    return tuple(
        _of_layout(shard) | (dict(manifest.formats) if manifest is not None else {}) for shard, manifest in pairs
    )


def unfinished_folders(shards: Sequence[Path]) -> list[Path]:
    """Folders of shards, or of several splits above them, whose shards are not all written: the writing goes on, or was ended."""
    found: dict[Path, None] = {}
    for folder in dict.fromkeys(shard.absolute().parent for shard in shards):
        for place in (folder, folder.parent):
            if (place / UNFINISHED).is_file():
                with contextlib.suppress(DataError, OSError):  # a file of that name of another program
                    manifest = read_manifest(place)
                    if manifest is not None and (place == folder or folder in {path.parent for path in manifest.paths}):
                        found[place] = None
    return list(found)


def warn_of_unfinished(shards: Sequence[Path]) -> None:
    """Warn of each of the `unfinished_folders`."""
    for folder in unfinished_folders(shards):
        _log.warning("%s is unfinished: %s", folder, SHARDS_ARE_MISSING)


def _of_layout(shard: Path) -> dict[str, str]:
    """The formats that the type of the set says, see `FORMATS_OF_TYPES`."""
    file = next((found for folder in shard.absolute().parents[:2] if (found := folder / SET_TYPE_FILE).is_file()), None)
    return dict(FORMATS_OF_TYPES.get(file.read_text(errors="replace").strip(), {})) if file is not None else {}
