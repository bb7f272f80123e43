"""What the manifests beside shards say: of which packing a shard is, and the formats of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.writer import Manifest, read_manifest

Formats = Mapping[str, str]
"""Extension -> name of the format of such members; see `Manifest`."""


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


def shared_formats(shards: Sequence[Path]) -> dict[str, str]:
    """The formats that the manifests of all shards say alike; empty if one of them has no manifest."""
    first, *others = read_formats(shards) or ({},)
    return dict(item for item in first.items() if all(item in other.items() for other in others))


def read_formats(shards: Sequence[Path]) -> tuple[Formats, ...]:
    """The formats of the members of each shard, as its manifest says; empty: nothing says."""
    return tuple({} if manifest is None else manifest.formats for manifest in find_manifests(shards))
