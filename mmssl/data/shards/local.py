"""Reading byte ranges of local shards."""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmssl.core.errors import DataError, os_words


class LocalReader:
    """Reads byte ranges of local files. Each process opens at most `MAX_OPEN` handles, on first use; they are never pickled."""

    MAX_OPEN: ClassVar[int] = 128
    PAUSES: ClassVar[tuple[float, ...]] = (0.1, 0.5, 2.0)

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self.paths = paths
        self.sizes = sizes
        self._handles: OrderedDict[int, _Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "sizes": self.sizes, "_handles": OrderedDict()}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of file `number`. I/O errors are retried: skipping the sample would make the stream depend on them."""
        for pause in (*self.PAUSES, None):
            try:
                return self._handle(number).read(offset, size)
            except OSError as error:
                self._handles.pop(number, None)
                if pause is None or error.errno in (errno.ENOENT, errno.EACCES):
                    raise DataError(
                        f"{self.paths[number]}, byte {offset}: cannot read {size} bytes: {os_words(error)}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def read_anew(self, number: int, offset: int, size: int) -> bytes:
        """As `read`: local files have no cached copy."""
        return self.read(number, offset, size)

    def close(self) -> None:
        """Close open files; the next read opens them again."""
        self._handles.clear()

    def _handle(self, number: int) -> _Handle:
        handle = self._handles.get(number)
        if handle is None:
            handle = self._handles[number] = _Handle(self.paths[number])
            if handle.size != self.sizes[number]:
                raise DataError(
                    f"{self.paths[number]} has changed since it was indexed: it had {self.sizes[number]} bytes "
                    f"and now has {handle.size}; start again"
                )
        self._handles.move_to_end(number)
        if len(self._handles) > self.MAX_OPEN:
            self._handles.popitem(last=False)
        return handle


class _Handle:
    """An open file that closes with its last reference, so that eviction cannot break a read in progress."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def __del__(self) -> None:
        if "_fd" in self.__dict__:
            os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            part = os.pread(self._fd, size, offset)
            if not part:
                raise OSError(errno.EIO, f"the file ends at byte {offset}")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
