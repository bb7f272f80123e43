"""A folder of fetched files, capped in bytes and shared by all processes of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mmssl.core.errors import DataError, os_words

_log = logging.getLogger(__name__)

Fill = Callable[[BinaryIO], None]
"""Writes the whole content of a cache entry into the given file."""

_PART = ".part-"
_ATTEMPTS = 5
_RETRY = 0.02  # seconds between two looks whether a lock, or some room, is free
_PATIENCE = 60.0  # seconds to wait for room
_ABANDONED = 3600  # seconds after which an unlocked partial file counts as left by a killed process


def _wait_on(_: str) -> None:
    """The waiting may go on."""


class Cache:
    """Cache of files by key, with least-recently-used eviction. Stateless: any number of processes and threads may share a folder.

    One process writes an entry under a temporary name and renames it when complete; others wait for it. Open files are never
    evicted. Of the others the least recently used go first, a tenth of the cap at a time. A file being written counts with its
    full size from the beginning, where the size is known.

    Args:
        folder: created on first use.
        max_bytes: largest total size of all files.
        sleep, clock: functions that wait and tell the time.
        check: called while another process is waited for, with words on what for; it raises to end the waiting.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[str], None] = _wait_on,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.sleep, self.clock, self.check = sleep, clock, check

    def open(self, key: str, fill: Fill, size: int | None = None) -> BinaryIO:
        """Open the file of a key for reading, and fill it first if it is missing. It is not evicted while open.

        Args:
            key: any text that names the content.
            fill: called if the file is missing.
            size: bytes that the file must have; None: any number.

        Raises:
            DataError: an unwritable folder, a cap that is too small, or `fill` wrote too few or too many bytes. Others: see `fill`.
        """
        path = self.path(key)
        for _ in range(_ATTEMPTS):
            try:
                file = self.open_cached(key, size)
                file = self._make(path, fill, size) if file is None else file
                if file is not None:
                    return file
            except OSError as error:
                raise DataError(
                    f"the cache {self.folder} cannot be written: {os_words(error)}; free some space, or set another folder in "
                    "`data.cache.folder`"
                ) from error
        raise DataError(
            f"{path} was written {_ATTEMPTS} times, and deleted each time before it was opened. Stop other programs that delete "
            "files there, or raise `data.cache.max_bytes`"
        )

    def open_cached(self, key: str, size: int | None = None) -> BinaryIO | None:
        """Open the file of a key for reading; None if it is missing or has another size."""
        path = self.path(key)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
        if status.st_nlink and size in (None, status.st_size):
            os.utime(file.fileno())  # evicted last
            return file
        file.close()
        if status.st_nlink:
            _log.warning("%s has %d bytes, wanted %s: fetching it again", path, status.st_size, size)
            path.unlink(missing_ok=True)
        return None

    def remove(self, key: str) -> None:
        """Delete the file of a key. Handles that are open stay readable."""
        self.path(key).unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Path of the file of a key."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def used(self) -> int:
        """Total bytes of all files, by a scan of the folder."""
        if not self.folder.exists():
            return 0
        with _locked(self.folder / ".lock"):
            return sum(size for _, size, _ in self._listed())

    def _make(self, path: Path, fill: Fill, size: int | None) -> BinaryIO | None:
        """Write a file and keep it open; None: another process has just written it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._key_lock(path.parent / ".lock"):  # no two processes fetch the same file
            if path.exists():
                return None
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_PART, delete=False) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if size is not None:
                        self._reserve(file.fileno(), size)
                    fill(file)  # type: ignore[arg-type]
                    file.flush()
                    got = file.tell() if size is not None else file.seek(0, os.SEEK_END)
                    if size is None:
                        self._reserve(file.fileno(), got)
                    elif got != size:
                        raise DataError(f"got {got} bytes for the cache, wanted {size}")
                    with _locked(self.folder / ".lock"):  # no other process counts files meanwhile
                        os.replace(file.name, path)
                    # Unlock explicitly, because a process forked meanwhile has the same lock open. Keep the file open: in a small
                    # cache other processes might evict it before it is read.
                    fcntl.flock(file, fcntl.LOCK_SH)
                    file.seek(0)
                    return os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise

    @contextmanager
    def _key_lock(self, path: Path) -> Iterator[None]:
        """The lock for a 256th of all keys. Its owner may wait long for storage, perhaps in another run."""
        with path.open("ab") as file:
            while not _try_lock(file):
                self.check(f"the cache {self.folder}, which another process fills")
                self.sleep(_RETRY)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def _reserve(self, file: int, size: int) -> None:
        """Make room, and give the file its size so that others count it."""
        if size > self.max_bytes:
            raise DataError(
                f"{size} bytes do not fit into the cache of {self.max_bytes} bytes in {self.folder}: raise `data.cache.max_bytes`"
            )
        deadline = self.clock() + _PATIENCE
        while True:
            with _locked(self.folder / ".lock"):
                used = self._noted()
                if used is None or used + size > self.max_bytes:
                    used = self._evict(size)
                if used + size <= self.max_bytes:
                    os.ftruncate(file, size)
                    (self.folder / "used").write_text(str(used + size))
                    return
            if self.clock() > deadline:
                raise DataError(
                    f"the cache of {self.max_bytes} bytes in {self.folder} has been full of files in use for {_PATIENCE:g} s: "
                    "raise `data.cache.max_bytes`, or lower `data.workers`"
                )
            self.check(f"the cache {self.folder}, which is full of files in use")
            self.sleep(_RETRY)  # files are in use for moments only: until they are read or fetched

    def _noted(self) -> int | None:
        """Total bytes as last recorded. Too large if files were deleted since; the next eviction corrects it."""
        try:
            return int((self.folder / "used").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _evict(self, size: int) -> int:
        """Delete the least recently used files until `size` bytes fit; returns the total bytes after it."""
        files = self._listed()
        abandoned = time.time_ns() - _ABANDONED * 10**9
        used = sum(bytes_ for _, bytes_, _ in files)
        goal = min(self.max_bytes - size, int(0.9 * self.max_bytes)) if used + size > self.max_bytes else used
        for modified, bytes_, path in sorted(files):
            # A partial file is locked a moment after its creation: a young one never counts as left by a killed process.
            part = path.name.startswith(_PART)
            if (used > goal or part) and not (part and modified > abandoned) and _remove_unused(path):
                used -= bytes_
        return used

    def _listed(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of each file."""
        files = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # partial files of failed attempts are deleted without a lock
                status = path.stat()
                if path.name != ".lock":
                    files.append((status.st_mtime_ns, status.st_size, path))
        return files


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone does not unlock if a process was forked meanwhile


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if not _try_lock(file):
                return False
            path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        pass
    return True
