"""Retry policy for remote storage: exponential backoff until a deadline, and an early end when the run is told to stop.

All readers of a process and of its workers share one `Outages`: a deadline belongs to a server, and not to a reader, a stream or
an evaluator; and one call, `stop_waiting`, ends all waiting.
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

from mmssl.core.errors import DataError, Stopped

T = TypeVar("T")
_log = logging.getLogger(__name__)

_GLANCE = 0.25  # seconds between two checks of the stop flag
_SERVERS = 64
_USER = re.compile(r"//[^/@\s]*@")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # of botocore
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Absent(DataError):
    """The URL does not exist (404)."""


class Refused(DataError):
    """The storage answers and refuses access (for example 403)."""


class NoRanges(Exception):
    """The server does not support range requests."""


class Outages:
    """Start of each server's outage, and the stop flag, in shared memory that worker processes inherit.

    Times are of a clock that all processes of a machine share. Servers whose names collide share a slot, and so a deadline.
    """

    def __init__(self) -> None:
        import torch  # imports slowly, and local shards do without it

        # [0]: stop flag, set if positive; then for each slot the time of the server's first failure since its last answer, and
        # the time of its last failure.
        nothing = torch.full((1 + 2 * _SERVERS,), -math.inf, dtype=torch.float64)
        self._shared = nothing.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def stopping(self) -> bool:
        """Whether the stop flag is set: all waiting ends."""
        return bool(self._shared[0] > 0)

    def stop(self) -> None:
        """Set the stop flag, which ends all waiting. Safe in a signal handler."""
        self._shared[0] = 1

    def resume(self) -> None:
        """Clear the stop flag."""
        self._shared[0] = -math.inf

    def check(self, what: str) -> None:
        """Raise `Stopped` if the stop flag is set; `what` is waited for."""
        if self.stopping:
            raise Stopped(f"{what}: the run was told to stop while waiting for it")

    def failed(self, server: str, now: float, gap: float) -> float:
        """Record a failure; returns the time of the outage's first failure. An outage is over after `gap` seconds without one."""
        slot = self._slot(server)
        # Other processes write the first failure before the last one: read in the other order, the first is never older.
        last = float(self._shared[slot + 1])
        since = float(self._shared[slot])
        if now - last > gap:
            self._shared[slot] = since = now
        self._shared[slot + 1] = now
        return since

    def answered(self, server: str) -> None:
        """Record that the server has answered, which ends its outage."""
        self._shared[self._slot(server) + 1] = -math.inf

    @staticmethod
    def _slot(server: str) -> int:
        return 1 + 2 * (zlib.crc32(server.encode()) % _SERVERS)


_of_process: Outages | None = None


def shared_outages() -> Outages:
    """The outages that all readers of this process share; a worker process has those of the readers that it was given."""
    global _of_process
    if _of_process is None:
        _of_process = Outages()
    return _of_process


def stop_waiting() -> None:
    """End all waiting for storage in this process and its workers: it raises `Stopped`. Safe in a signal handler."""
    if _of_process is not None:  # otherwise nobody waits
        _of_process.stop()


def wait_again() -> None:
    """Allow waiting for storage after `stop_waiting`."""
    if _of_process is not None:
        _of_process.resume()


@dataclass(frozen=True)
class Patience:
    """Retry with exponential backoff: pauses double, until a deadline.

    Attributes:
        pause: seconds after the first failure; longest: the longest pause.
        deadline: seconds from a server's first failure, in any reader, after which no attempt begins.
        timeout: seconds without a byte after which an attempt has failed.
        outages: state that all readers share.
        sleep, clock: functions that wait and tell the time.
    """

    pause: float = 0.5
    longest: float = 30.0
    deadline: float = 300.0
    timeout: float = 30.0
    outages: Outages = field(default_factory=Outages, compare=False)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __call__(self, url: str, part: str, action: Callable[[], T]) -> T:
        """Run an action until it succeeds; returns its result.

        Args:
            url: the file; its server has the deadline.
            part: wanted part of the file, for messages, as "byte 0 to 512".
            action: one attempt; after a stop it may continue in the background.

        Raises:
            Absent: the URL does not exist. Refused: the storage refuses access; both are final. NoRanges: passed on from the
            action. Stopped: the run was told to stop. DataError: all attempts failed.
        """
        server, what = _server(url), f"{without_secrets(url)}, {part}"
        started, pause, attempts, first = self.clock(), self.pause, 0, False
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
                # Each client has its own exceptions. Errors that are not known to be final are retried, and raised in the end.
                final = _final(error, what)
                if final is not None:
                    self.outages.answered(server)
                    raise final from error
                now = self.clock()
                # Between two failures lie at most a pause, and an attempt that waits for the connection and for a byte.
                outage = self.outages.failed(server, now, self.longest + 2 * self.timeout)
                first, since = first or outage == now, min(started, outage)
                if now - since + pause > self.deadline:
                    raise DataError(
                        f"{what}: attempt {attempts} failed: {_words(error)}; {server} has failed for {now - since:.0f} s. No "
                        "sample was skipped: resume when the storage is back, or raise `data.cache.deadline`"
                    ) from error
                level = logging.WARNING if first else logging.INFO  # one reader tells of an outage
                left = self.deadline - (now - since)
                _log.log(level, "%s: attempt %d failed: %s; retrying for %.0f s", what, attempts, _words(error), left)
            else:
                self.outages.answered(server)
                return result
            self._wait(what, pause)
            pause = min(2 * pause, self.longest)

    def _wait(self, what: str, seconds: float) -> None:
        """Sleep, or return early when the run is told to stop."""
        ends = self.clock() + seconds
        while (left := ends - self.clock()) > 0:
            self.outages.check(what)
            self.sleep(min(left, _GLANCE))

    def _attempt(self, what: str, action: Callable[[], T]) -> T:
        """Run the action in a separate thread, so that a server that does not answer cannot block a stop."""
        self.outages.check(what)
        attempt = _Attempt(action)
        attempt.start()
        while not attempt.done.wait(_GLANCE):
            self.outages.check(what)
        return attempt.result()


class _Attempt(threading.Thread, Generic[T]):
    """Thread that runs an action; `done` is set when its result or exception is available."""

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
        """Return the action's result, or raise its exception."""
        if self._error is not None:
            raise self._error
        return self._values[0]


def without_secrets(url: str) -> str:
    """A URL for messages: without query, user and password."""
    return url if url.startswith("pipe:") else _USER.sub("//", url.split("?", 1)[0])


def _server(url: str) -> str:
    parts = urlsplit(without_secrets(url))
    return f"{parts.scheme}://{parts.netloc}"


def _final(error: Exception, what: str) -> DataError | None:
    """The exception to raise without a retry; None for a failure that may be temporary."""
    status = _status(error)
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and error.__cause__ is None):
        return Absent(f"{what}: not found ({_words(error)}); check the address")
    if isinstance(error, TimeoutError):  # S3 answers 400 to a request that it has waited for too long
        refused = False
    elif status is not None:
        refused = 300 <= status < 500 and status not in (408, 425, 429)
    else:
        refused = (
            isinstance(error, PermissionError | NotImplementedError)
            or (isinstance(error, OSError) and error.errno in _FULL)
            or type(error).__name__ in _NO_CREDENTIALS
        )
    return (
        Refused(f"{what}: access refused: {_words(error)}; check the credentials and permissions") if refused else None
    )


def _status(error: BaseException | None) -> int | None:
    """HTTP status of the answer behind an exception, of aiohttp's or of botocore's or its cause's; None: no answer."""
    if error is None:
        return None
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None)
    return found if isinstance(found, int) else _status(error.__cause__)


def _words(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return without_secrets(f"{type(cause).__name__}: {cause}".rstrip(": "))
