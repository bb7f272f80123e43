"""Comparing shards with the manifest of their folder: missing, extra and changed files, and folders that are not finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.curation.check_shard import SOURCE
from mmssl.data.shards.manifests import SHARDS_ARE_MISSING, unfinished_folders
from mmssl.data.shards.paths import expand
from mmssl.data.shards.writer import MANIFEST, Manifest, ShardRecord, read_manifest, sha256_of

AGAIN = "fetch it again, or pack the data set again"


def compare_with_manifests(shards: Sequence[str | Path]) -> list[Fault]:
    """Compare local shards with the manifests beside them (or one folder above, which then lists several splits).

    Args:
        shards: paths, folders, globs or brace patterns. Shards that a manifest lists in these folders must be there, also if no
            pattern names them.

    Returns:
        A fault for each shard that is missing, not listed, or of another size or SHA-256.

    Raises:
        DataError: a pattern without files, or a URL.
    """
    folders: dict[Path, list[Path]] = {}
    for path in expand(shards):
        folders.setdefault(path.parent, []).append(path)
    return [fault for folder, paths in folders.items() for fault in _compare(folder, paths)]


def unfinished_faults(places: Sequence[str | Path]) -> list[Fault]:
    """A fault for each folder of local shards that are not all written; see `find_shards` for the places."""
    folders = unfinished_folders([place for place in places if isinstance(place, Path)])
    return [_fault(folder, "unfinished", SHARDS_ARE_MISSING) for folder in folders]


def _compare(folder: Path, paths: Sequence[Path]) -> Iterator[Fault]:
    try:
        manifest, records = _records(folder)
    except DataError as error:
        yield _fault(folder / MANIFEST, "manifest", str(error))
        return
    for path in sorted({*paths, *records}):
        record = records.get(path)
        if record is None:
            yield _fault(path, "extra", f"{manifest.folder / MANIFEST} does not list it: move it away")
        elif not path.is_file():
            yield _fault(path, "missing", f"{manifest.folder / MANIFEST} lists it: {AGAIN}")
        elif path not in paths:
            continue
        elif (size := path.stat().st_size) != record.bytes:
            yield _fault(path, "size", f"got {size} bytes, and the manifest says {record.bytes}: {AGAIN}")
        elif sha256_of(path) != record.sha256:
            yield _fault(
                path, "sha256", f"its {size} bytes differ from those that the manifest was written for: {AGAIN}"
            )


def _records(folder: Path) -> tuple[Manifest, dict[Path, ShardRecord]]:
    """The manifest of a folder of shards, and its records of shards there."""
    for place in (folder, folder.absolute().parent):
        manifest = read_manifest(place)
        listed = manifest.shards if manifest is not None else ()
        inside = {folder / Path(one.path).name: one for one in listed if _same(place / one.path, folder)}
        if manifest is not None and (inside or place == folder):
            return manifest, inside
    raise DataError(f"there is no {MANIFEST} in {folder} or the folder above that lists shards there")


def _same(path: Path, folder: Path) -> bool:
    return path.absolute().parent == folder.absolute()


def _fault(path: Path, reason: str, detail: str) -> Fault:
    return Fault("", Origin(SOURCE, str(path), 0, 0), "tar", reason, detail)
