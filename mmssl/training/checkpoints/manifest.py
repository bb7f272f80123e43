"""Atomic checkpoint folders: files are hashed while written, and a manifest lists sizes and SHA-256.

A folder is written beside its place under a temporary name, flushed to the disk, and renamed in one step. A killed write leaves a
temporary folder, which is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from mmssl.core.errors import CheckpointError, os_words

MANIFEST = "manifest.json"
SCHEMA = 1


class FolderWriter:
    """Writes files into a new folder and then its manifest.

    Args:
        folder: must not exist.

    Raises:
        OSError: from every method, when the disk is full or fails.
    """

    def __init__(self, folder: Path) -> None:
        os.mkdir(folder)
        self.folder = folder
        self._files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, dump: Callable[[BinaryIO], Any]) -> None:
        """Write one file with `dump`, and flush it to the disk."""
        with open(self.folder / name, "xb") as file:
            hashing = _HashingFile(file)
            try:
                dump(hashing)  # type: ignore[arg-type]
            except RuntimeError as error:
                # torch's archive writer wraps a failed write in another error; users need the cause.
                if hashing.failure is not None:
                    raise hashing.failure from error
                raise
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = {"size": hashing.size, "sha256": hashing.digest.hexdigest()}

    def share(self, name: str, dump: Callable[[BinaryIO], Any], earlier: Path | None) -> None:
        """Write one file, or link it (a hard link) from an earlier checkpoint that has the same bytes: the disk holds them once.

        Args:
            name: of the file. dump: writes it.
            earlier: folder of another checkpoint; None: there is none.
        """
        try:
            known = read_checkpoint_manifest(earlier)["files"].get(name) if earlier is not None else None
            if known is not None and earlier is not None:
                with open(os.devnull, "wb") as nowhere:
                    hashing = _HashingFile(nowhere)
                    dump(hashing)  # type: ignore[arg-type]
                if known == {"size": hashing.size, "sha256": hashing.digest.hexdigest()}:
                    _check_file(earlier / name, known)
                    os.link(earlier / name, self.folder / name)
                    self._files[name] = known
                    return
        except (OSError, CheckpointError):  # a damaged file, or a file system without links
            pass
        self.write(name, dump)

    def finish(self) -> None:
        """Write the manifest, as the last file."""
        manifest = {"schema": SCHEMA, "files": self._files}
        with open(self.folder / MANIFEST, "x") as file:
            file.write(json.dumps(manifest, indent=1))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)


class _HashingFile:
    """A binary file for writing that updates a SHA-256 digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.digest.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()


def verify(folder: Path) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        CheckpointError: names what is missing, cut or changed.
    """
    manifest = read_checkpoint_manifest(folder)
    for name, wanted in manifest["files"].items():
        _check_file(folder / name, wanted)


def _check_file(path: Path, wanted: dict[str, Any]) -> None:
    """Check a file against its entry of a manifest."""
    try:
        size = path.stat().st_size
        if size != wanted["size"]:
            raise CheckpointError(
                f"{path}: cut short or extended: got {size} bytes, the manifest says {wanted['size']}"
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, and the manifest names it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {os_words(error)}") from error
    if digest != wanted["sha256"]:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in the manifest")


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a folder.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {MANIFEST}: not a checkpoint, or an unfinished one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {os_words(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise CheckpointError(
            f"{path}: got schema {got!r}, wanted {SCHEMA}: written by another version of this library"
        )
    files = manifest.get("files")
    formed = (
        isinstance(files, dict)
        and files
        and all(
            isinstance(f, dict) and isinstance(f.get("size"), int) and isinstance(f.get("sha256"), str)
            for f in files.values()
        )
    )
    if not formed or any(Path(name).name != name for name in manifest["files"]):
        raise CheckpointError(f"{path}: damaged: its list of files cannot be used")
    return manifest


def weights_digest(folder: Path) -> str:
    """SHA-256 over the hashes of all tensors of a checkpoint: equal for equal weights.

    Raises:
        CheckpointError: the manifest is missing or malformed.
    """
    files = read_checkpoint_manifest(folder)["files"]
    lines = [f"{name} {files[name]['sha256']}" for name in sorted(files) if name.endswith(".safetensors")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, content: str) -> None:
    """Replace a small text file atomically."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_folder(folder: Path) -> None:
    """Delete a folder after renaming it, so a half-deleted checkpoint is never read."""
    trash = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-old")
    os.replace(folder, trash)
    shutil.rmtree(trash)
