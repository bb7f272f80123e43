"""Writing shards: atomic tar files, equal bytes for equal samples, and a manifest with their digests.

A shard is written under a temporary name and renamed when complete. The manifest records size and SHA-256 of each, so that a later
call keeps intact shards and writes only those that are missing or damaged. Until all are written, it has another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mmssl.core.errors import DataError, os_words
from mmssl.data.shards.sidecar import sidecar_path

_log = logging.getLogger(__name__)
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (samples or shards done, all of them)."""

MANIFEST = "manifest.json"
UNFINISHED = "manifest.unfinished.json"
"""In place of the manifest until all shards are written: what a later call goes on behind."""
FORMAT = 1
_OURS = re.compile(r"\d{6}\.tar|\.\d{6}\.tar\.\d+\.partial")


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard.

    Attributes:
        path: relative to the folder of the manifest, with forward slashes.
        start, stop: range of positions in the order of packing, skipped rows included.
        samples: number of samples.
        bytes: size of the tar file.
        sha256: digest of the tar file, hexadecimal.
        skipped: unusable rows between start and stop: {"row", "where", "reason", "detail"}.
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
    """Manifest of a folder of shards: settings, and size and digest of each shard.

    Attributes:
        folder: folder of the shards (not stored, so that it can be moved).
        settings: all settings that the bytes depend on; equal settings mean equal shards.
        shards: one record a shard, in order.
        complete: whether all shards are written.
        formats: extension -> name of the format of such members, where several are possible, as a modality names them.
    """

    folder: Path
    settings: Mapping[str, Any]
    shards: tuple[ShardRecord, ...]
    complete: bool = True
    formats: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Total size of all shards in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def paths(self) -> list[Path]:
        """Paths of the shards, in order."""
        return [self.folder / shard.path for shard in self.shards]

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped rows by reason."""
        return dict(Counter(row["reason"] for shard in self.shards for row in shard.skipped))

    def write(self) -> Manifest:
        """Write `manifest.json` into the folder, atomically; or, as long as it is not complete, `manifest.unfinished.json`."""
        document = {
            "format": FORMAT,
            "complete": self.complete,
            "samples": self.samples,
            "bytes": self.bytes,
            "settings": dict(self.settings),
            "formats": dict(self.formats),
            "skipped": self.skipped,
            "shards": [asdict(shard) for shard in self.shards],
        }
        # Of both files, which a kill may leave, the unfinished one counts.
        name, other = (MANIFEST, UNFINISHED) if self.complete else (UNFINISHED, MANIFEST)
        write_atomically(self.folder / name, (json.dumps(document, indent=1) + "\n").encode())
        (self.folder / other).unlink(missing_ok=True)
        return self

    def intact(self, shard: ShardRecord) -> bool:
        """Whether the shard exists with the recorded size and digest."""
        path = self.folder / shard.path
        return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder of shards, or of an unfinished one what there is so far; None if there is none.

    Raises:
        DataError: the manifest cannot be read.
    """
    path = next((folder / name for name in (UNFINISHED, MANIFEST) if (folder / name).exists()), None)
    return None if path is None else parse_manifest(path.read_bytes(), folder, str(path))


@contextlib.contextmanager
def telling_what_stays(folder: Path, advice: str) -> Iterator[None]:
    """Say what an error or a signal within leaves in a folder of shards; a folder without any gets no manifest.

    Args:
        folder: of the manifest.
        advice: what to do about it.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(DataError, OSError):
            state = read_manifest(folder)
            if state is not None and state.shards:
                said = f"shards so far: {len(state.shards)}, of {state.samples:,} samples, in {UNFINISHED}"
                _log.warning("%s is unfinished (%s): %s", folder, said, advice)
            elif not any(folder.rglob("*.tar")):
                (folder / UNFINISHED).unlink(missing_ok=True)
        raise


def parse_manifest(data: bytes, folder: Path, where: str) -> Manifest:
    """Parse a manifest of the shards in a folder.

    Raises:
        DataError: it is none; names `where` it lies.
    """
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, wanted {FORMAT}")
        shards = tuple(ShardRecord(**{**shard, "skipped": tuple(shard["skipped"])}) for shard in document["shards"])
        formats = {str(extension): str(name) for extension, name in document.get("formats", {}).items()}
        return Manifest(folder, document["settings"], shards, document["complete"], formats)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} is not a manifest of shards ({error}): delete it, or choose another folder"
        ) from error


def write_shard(folder: Path, name: str, start: int, stop: int, samples: Iterable[Mapping[str, Any]]) -> ShardRecord:
    """Write samples as one tar file `folder/name`, atomically.

    Args:
        folder: folder of the manifest; the folder of the shard is created.
        name: path of the shard relative to `folder`.
        start, stop: for the record, see `ShardRecord`.
        samples: mappings {"__key__": key, extension: bytes}. Equal samples give equal tar files: no time, no user.

    Raises:
        DataError: the disk is full or not writable, or an extension is empty or begins with `_`; no partial file remains.
    """
    # No fsync: the digest finds a shard that a power cut truncated, and a later call writes it again.
    with _atomic(folder / name) as partial, partial.open("wb") as file:
        hashing = _Hashing(file)
        count = _write_tar(hashing, samples)
        sidecar_path(folder / name).unlink(missing_ok=True)
    return ShardRecord(name, start, stop, count, hashing.size, hashing.digest.hexdigest())


def claim_folder(folder: Path) -> Manifest | None:
    """Check that shards may be written into a folder; returns the manifest of an earlier call, or None.

    Raises:
        DataError: the folder holds tar files that are not in the manifest, which `*.tar` would mix with the new ones.
    """
    previous = read_manifest(folder)
    found = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    foreign = [path for path in found if previous is None or not _OURS.fullmatch(path.name)]
    if foreign:
        raise DataError(
            f"{folder} holds {len(foreign)} tar files that are not in its manifest (first: {foreign[0].name}) and would be "
            "mixed with the new shards; choose another folder, or move them away"
        )
    return previous


def remove_stale(folder: Path, keep: Iterable[str]) -> None:
    """Delete numbered shards of earlier calls except those to keep, and partial files of killed calls."""
    kept = {folder / name for name in keep}
    for path in (*folder.rglob("*.tar"), *folder.rglob(".*.partial")):
        if path not in kept and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
            sidecar_path(path).unlink(missing_ok=True)


def map_in_order(work: Callable[[int], T], rows: range, workers: int) -> Generator[T]:
    """`map` over threads, in order and with a bounded look-ahead, so that memory stays constant."""
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
    """Write a small file atomically.

    Raises:
        DataError: the disk is full or not writable.
    """
    with _atomic(path) as partial:
        partial.write_bytes(data)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file atomically, a line end after each line. Raises DataError as `write_atomically`."""
    with _atomic(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary file, renamed to `path` at the end, or deleted on an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {os_words(error)}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashing:
    """File wrapper that hashes and counts the written bytes: tar streams never seek back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _write_tar(file: _Hashing, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write samples like webdataset's TarWriter, byte for byte, but without its import of torch; returns their number."""
    count = 0
    with tarfile.open(fileobj=file, mode="w|") as archive:  # type: ignore[call-overload]
        for sample in samples:
            key = sample["__key__"]
            for extension in sorted(sample.keys() - {"__key__"}):
                if not extension or extension.startswith("_"):
                    raise DataError(
                        f"sample {key!r}: got a member .{extension}, which WebDataset's readers would drop: rename it, or "
                        "remove it from the source"
                    )
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(sample[extension]), 0o644
                member.uname = member.gname = "mmssl"
                archive.addfile(member, io.BytesIO(sample[extension]))
            count += 1
    return count
