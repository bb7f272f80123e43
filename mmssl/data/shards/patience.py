"""Patience with storage that fails: when to try again, until when, and how a run that is told to stop ends the waiting.

All readers of a run share one `Outages`, also those in worker processes: the deadline is that of a server, not of a reader.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import torch

from mmssl.core.errors import DataError, Stopped

T = TypeVar("T")
_log = logging.getLogger(__name__)

_GLANCE = 0.25  # seconds between two looks at whether the run is to stop
_SERVERS = 64
_USER = re.compile(r"//[^/@\s]*@")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Absent(DataError):
    """There is nothing at that URL."""


class Refused(DataError):
    """The storage answers, and will not give it."""


class NoRanges(Exception):
    """The server gives whole files only."""


class Outages:
    """Since when servers fail, and whether the run is to stop, in shared memory: worker processes inherit it.

    Times are of a clock that all processes of a machine share. Servers share a slot where their names collide, and then a deadline.
    """

    def __init__(self) -> None:
        # [0]: whether to stop, if positive; after it, for each slot, when the server's first failure since its last answer was, and
        # its last failure.
        nothing = torch.full((1 + 2 * _SERVERS,), -math.inf, dtype=torch.float64)
        self._shared = nothing.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def stopping(self) -> bool:
        """Whether nobody is to wait any longer."""
        return bool(self._shared[0] > 0)

    def stop(self) -> None:
        """End all waiting; may be called by a signal handler."""
        self._shared[0] = 1

    def failed(self, server: str, now: float, gap: float) -> float:
        """Note a failure; returns since when the server has been failing. After `gap` seconds without one an outage is over."""
        slot = self._slot(server)
        since, last = float(self._shared[slot]), float(self._shared[slot + 1])
        if now - last > gap:
            self._shared[slot] = since = now
        self._shared[slot + 1] = now
        return since

    def answered(self, server: str) -> None:
        """Note that the server has answered."""
        self._shared[self._slot(server) + 1] = -math.inf

    @staticmethod
    def _slot(server: str) -> int:
        return 1 + 2 * (zlib.crc32(server.encode()) % _SERVERS)


@dataclass(frozen=True)
class Patience:
    """When to try again: after pauses that double, until a deadline.

    Attributes:
        pause: seconds after the first failure; longest: the longest pause.
        deadline: seconds from a server's first failure after which no attempt begins, whichever reader it met.
        timeout: seconds without a byte after which an attempt has failed.
        outages: what all readers share.
        sleep, clock: how to wait, and what time it is.
    """

    pause: float = 0.5
    longest: float = 30.0
    deadline: float = 300.0
    timeout: float = 30.0
    outages: Outages = field(default_factory=Outages, compare=False)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __call__(self, url: str, part: str, action: Callable[[], T]) -> T:
        """The result of the first attempt that does not fail.

        Args:
            url: whose server is asked.
            part: of the file that is wanted, for messages, as "byte 0 to 512".
            action: one attempt; it may go on in the background after a stop.

        Raises:
            Absent: the storage says that there is nothing. Refused: it will not give it, as it will not after another attempt.
            NoRanges: as it is. Stopped: the run was told to stop. DataError: all attempts failed.
        """
        server, what = _server(url), f"{shown(url)}, {part}"
        started, pause, attempts = self.clock(), self.pause, 0
        while True:
            attempts += 1
            try:
                result = self._attempt(what, action)
            except Stopped:
                raise
            except (NoRanges, DataError):
                self.outages.answered(server)
                raise
            except Exception as error:
                # Every client has exceptions of its own; what is not known to be final is tried again, and raised in the end.
                final = _final(error, what)
                if final is not None:
                    self.outages.answered(server)
                    raise final from error
                now = self.clock()
                since = min(started, self.outages.failed(server, now, self.longest + self.timeout))
                if now - since + pause > self.deadline:
                    raise DataError(
                        f"{what}: attempt {attempts} failed: {_words(error)}; {server} has failed for {now - since:.0f} s. Nothing "
                        "was skipped; resume when the storage is back, or give it more time (`data.cache.deadline`)"
                    ) from error
                level = logging.WARNING if since >= started else logging.INFO  # one outage, one reader that tells of it
                left = self.deadline - (now - since)
                _log.log(level, "%s: attempt %d failed: %s; again for %.0f s", what, attempts, _words(error), left)
            else:
                self.outages.answered(server)
                return result
            self._wait(what, pause)
            pause = min(2 * pause, self.longest)

    def _wait(self, what: str, seconds: float) -> None:
        """Sleep, but not on when the run is to stop."""
        ends = self.clock() + seconds
        while (left := ends - self.clock()) > 0:
            self._refuse_to_wait(what)
            self.sleep(min(left, _GLANCE))

    def _attempt(self, what: str, action: Callable[[], T]) -> T:
        """The action's outcome, from a thread of its own: a server that does not answer cannot keep a run from stopping."""
        self._refuse_to_wait(what)
        attempt = _Attempt(action)
        attempt.start()
        while not attempt.done.wait(_GLANCE):
            self._refuse_to_wait(what)
        return attempt.result()

    def _refuse_to_wait(self, what: str) -> None:
        if self.outages.stopping:
            raise Stopped(f"{what}: told to stop while waiting for it")


class _Attempt(threading.Thread, Generic[T]):
    """Runs an action; its result or exception is there when `done` is set."""

    def __init__(self, action: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self._action = action
        self._values: list[T] = []
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._values.append(self._action())
        except Exception as error:
            self._error = error
        self.done.set()

    def result(self) -> T:
        """What the action returned; or its exception, raised."""
        if self._error is not None:
            raise self._error
        return self._values[0]


def shown(url: str) -> str:
    """A URL without its query, its user and that one's password."""
    return url if url.startswith("pipe:") else _USER.sub("//", url.split("?", 1)[0])


def _server(url: str) -> str:
    parts = urlsplit(shown(url))
    return f"{parts.scheme}://{parts.netloc}"


def _final(error: Exception, what: str) -> DataError | None:
    """What to raise at once; None for a failure that may pass."""
    status = getattr(error, "status", getattr(error.__cause__, "status", None))
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and error.__cause__ is None):
        return Absent(f"{what}: there is nothing ({_words(error)}); check the address")
    if status is not None:
        refused = 400 <= status < 500 and status not in (408, 425, 429)
    else:
        refused = isinstance(error, PermissionError | NotImplementedError) or (
            isinstance(error, OSError) and error.errno in _FULL
        )
    return Refused(f"{what}: refused: {_words(error)}") if refused else None


def _words(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return shown(f"{type(cause).__name__}: {cause}".rstrip(": "))
