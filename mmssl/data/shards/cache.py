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

from mmssl.core.errors import DataError

_log = logging.getLogger(__name__)

Fill = Callable[[BinaryIO], None]
"""Writes the content of an entry, from its beginning."""

_PART = ".part-"
_ATTEMPTS = 5
_PATIENCE = 60.0  # seconds to wait for room
_ABANDONED = 3600  # seconds after which a part that nobody holds is one of a killed process


class Cache:
    """Files by key. Holds no state: any number of processes and threads may use one folder.

    An entry is written under another name and moved to its place when it is whole, by one process while others wait for it. A
    file that is open is never taken away; of the others, those that were not used for longest are, a tenth of the cap at a time.
    What is being written counts against the cap as a whole from the beginning (where its size is known).

    Args:
        folder: is made when first needed.
        max_bytes: what all files together may take.
        sleep, clock: how to wait for room, and what time it is.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.sleep, self.clock = sleep, clock

    def open(self, key: str, fill: Fill, size: int | None = None) -> BinaryIO:
        """The file of a key, open for reading; it stays as long as it is open.

        Args:
            key: any text that names the content.
            fill: called if the file is not there.
            size: bytes that it must have; None: as many as `fill` writes.

        Raises:
            DataError: the disk does not take it, the cap is too small, or `fill` wrote another number of bytes. Others: of `fill`.
        """
        path = self.path(key)
        for _ in range(_ATTEMPTS):
            try:
                file = self.take(key, size)
                file = self._make(path, fill, size) if file is None else file
                if file is not None:
                    return file
            except OSError as error:
                raise DataError(
                    f"the cache {self.folder} cannot be written: {error}; free some space, or name another folder in "
                    "`data.cache.folder`"
                ) from error
        raise DataError(
            f"{path} was made {_ATTEMPTS} times and each time was gone before it could be opened: does another program delete "
            "files there, or is `data.cache.max_bytes` far too small?"
        )

    def take(self, key: str, size: int | None = None) -> BinaryIO | None:
        """The file of a key if it is there and has the right size, open for reading."""
        path = self.path(key)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
        if status.st_nlink and size in (None, status.st_size):
            os.utime(file.fileno())  # what was used last goes last
            return file
        file.close()
        if status.st_nlink:
            _log.warning("%s has %d bytes, wanted %s: it is fetched again", path, status.st_size, size)
            path.unlink(missing_ok=True)
        return None

    def drop(self, key: str) -> None:
        """Forget the file of a key; who has it open keeps what is in it."""
        self.path(key).unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Where the file of a key lies."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def used(self) -> int:
        """Bytes of all files, by looking at each."""
        if not self.folder.exists():
            return 0
        with _locked(self.folder / ".lock"):
            return sum(size for _, size, _ in self._listed())

    def _make(self, path: Path, fill: Fill, size: int | None) -> BinaryIO | None:
        """Make a file and keep it open; None: another process has just made it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(
            path.parent / ".lock"
        ):  # shared by a 256th of all keys: nobody fetches what another fetches already
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
                        raise DataError(f"got {got} bytes to be cached, wanted {size}")
                    with _locked(self.folder / ".lock"):  # nobody is counting files meanwhile
                        os.replace(file.name, path)
                    # Said aloud, because a process forked meanwhile has the same lock open; kept, or in a cache that is too
                    # small others would take the file away before it was read.
                    fcntl.flock(file, fcntl.LOCK_SH)
                    file.seek(0)
                    return os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise

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
                    "raise `data.cache.max_bytes`, or use fewer workers"
                )
            self.sleep(0.02)  # what is in use is in use for moments: until it is read, or fetched

    def _noted(self) -> int | None:
        """What the last one noted; too much where files were lost since, and then corrected by the next eviction."""
        try:
            return int((self.folder / "used").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _evict(self, size: int) -> int:
        """Take away what was not used for longest until `size` bytes fit well, or nothing can go; returns what is used then."""
        files = self._listed()
        abandoned = time.time_ns() - _ABANDONED * 10**9
        used = sum(bytes_ for _, bytes_, _ in files)
        goal = min(self.max_bytes - size, int(0.9 * self.max_bytes)) if used + size > self.max_bytes else used
        for modified, bytes_, path in sorted(files):
            # A part is locked only a moment after it was made: one that is young is never taken for that of a killed process.
            part = path.name.startswith(_PART)
            if (used > goal or part) and not (part and modified > abandoned) and _remove_unused(path):
                used -= bytes_
        return used

    def _listed(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of each file."""
        files = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # parts of failed attempts go without a lock
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
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone does not end it if a process was forked meanwhile


def _remove_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
