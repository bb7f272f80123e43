"""Writing shards: tar files that are whole or absent, equal bytes for equal samples, and a manifest that can prove it.

Used by everything that makes shards. A shard is written beside its final name and moved there when it is complete; the manifest
records size and SHA-256 of each, so that a later call keeps what is already there and redoes only what is missing or damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mmssl.core.errors import DataError
from mmssl.data.shards.table import sidecar_path

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (samples or shards done, all of them)."""

MANIFEST = "manifest.json"
FORMAT = 1
_OURS = re.compile(r"\d{6}\.tar|\.\d{6}\.tar\.\d+\.partial")


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard.

    Attributes:
        path: relative to the folder of the manifest, with forward slashes.
        start, stop: positions in the order of packing that it covers, with rows that were skipped.
        samples: samples in it.
        bytes: size of the tar file.
        sha256: digest of the tar file, hexadecimal.
        skipped: rows between start and stop that could not be used: {"row", "where", "reason", "detail"}.
    """

    path: str
    start: int
    stop: int
    samples: int
    bytes: int
    sha256: str
    skipped: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and what it was made from.

    Attributes:
        folder: where the shards lie (not stored, so that the folder can be moved).
        settings: everything that the bytes depend on; equal settings mean equal shards.
        shards: one record a shard, in order.
        complete: whether all shards are there.
    """

    folder: Path
    settings: Mapping[str, Any]
    shards: tuple[ShardRecord, ...]
    complete: bool = True

    @property
    def samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes over all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def paths(self) -> list[Path]:
        """Where the shards are, in order."""
        return [self.folder / shard.path for shard in self.shards]

    @property
    def skipped(self) -> dict[str, int]:
        """How many rows were skipped, by reason."""
        return dict(Counter(row["reason"] for shard in self.shards for row in shard.skipped))

    def write(self) -> Manifest:
        """Store as `manifest.json` in the folder, at once or not at all."""
        document = {
            "format": FORMAT,
            "complete": self.complete,
            "samples": self.samples,
            "bytes": self.bytes,
            "settings": dict(self.settings),
            "skipped": self.skipped,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_atomically(self.folder / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
        return self

    def intact(self, shard: ShardRecord) -> bool:
        """Whether the shard is there with the recorded size and digest."""
        path = self.folder / shard.path
        return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of shards; None if there is none.

    Raises:
        DataError: there is one, and it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, wanted {FORMAT}")
        shards = tuple(ShardRecord(**{**shard, "skipped": tuple(shard["skipped"])}) for shard in document["shards"])
        return Manifest(folder, document["settings"], shards, document["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest of shards ({error}): delete it, or choose another folder") from error


def write_shard(folder: Path, name: str, start: int, stop: int, samples: Iterable[Mapping[str, Any]]) -> ShardRecord:
    """Write samples as one tar file `folder/name`, at once or not at all.

    Args:
        folder: folder of the manifest; the shard's own folder is made.
        name: path of the shard relative to `folder`.
        start, stop: recorded as they are, see `ShardRecord`.
        samples: mappings {"__key__": key, extension: bytes}. Equal samples give equal tar files: no time, no user.

    Raises:
        DataError: the disk does not take it; nothing is left behind.
    """
    # No fsync: a shard that a power cut truncates is found by its digest and made again.
    with _whole_or_not(folder / name) as partial, partial.open("wb") as file:
        hashing = _Hashing(file)
        count = _write_tar(hashing, samples)
        sidecar_path(folder / name).unlink(missing_ok=True)
    return ShardRecord(name, start, stop, count, hashing.size, hashing.digest.hexdigest())


def claim(folder: Path) -> Manifest | None:
    """Make sure that a folder may be filled with shards; returns the manifest of an earlier call, or None for a new folder.

    Raises:
        DataError: the folder holds tar files of somebody else, which the next `*.tar` would mix up with ours.
    """
    previous = read_manifest(folder)
    found = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    foreign = [path for path in found if previous is None or not _OURS.fullmatch(path.name)]
    if foreign:
        raise DataError(
            f"{folder} holds {len(foreign)} tar files that no manifest there knows (first: {foreign[0].name}): they would be "
            "mixed up with the new shards; choose another folder, or move them away"
        )
    return previous


def remove_stale(folder: Path, keep: Iterable[str]) -> None:
    """Delete numbered shards of earlier calls that are not among the names to keep, and what a killed call left half written."""
    kept = {folder / name for name in keep}
    for path in (*folder.rglob("*.tar"), *folder.rglob(".*.partial")):
        if path not in kept and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
            sidecar_path(path).unlink(missing_ok=True)


def in_order(work: Callable[[int], T], rows: range, workers: int) -> Generator[T]:
    """`map` over threads that looks only a little ahead, so that memory stays flat whatever waits for the results."""
    if workers <= 1:
        yield from map(work, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for row in rows:
                pending.append(pool.submit(work, row))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file at once or not at all.

    Raises:
        DataError: the disk does not take it.
    """
    with _whole_or_not(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def _whole_or_not(path: Path) -> Iterator[Path]:
    """A file to fill, which takes the place of `path` at the end, or vanishes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashing:
    """A file that is hashed and counted while it is written: tar streams never seek back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _write_tar(file: _Hashing, samples: Iterable[Mapping[str, Any]]) -> int:
    from webdataset import TarWriter  # imports slowly, and readers do without it

    count = 0
    with TarWriter(file, encoder=False, compress=False, mtime=0, user="mmssl", group="mmssl", mode=0o644) as writer:
        for sample in samples:
            writer.write(sample)
            count += 1
    return count
