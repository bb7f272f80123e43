"""Signals that stop a run: recorded at once, acted on at the next step boundary, by all processes together."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

from mmssl.core.batch import Batch
from mmssl.core.distributed import gather_objects
from mmssl.core.errors import STOPPING, DataError, Interrupted, Stopped, StopSignal
from mmssl.data.shards.patience import stop_waiting, wait_again


@contextmanager
def default_signals() -> Iterator[None]:
    """Context in which `STOPPING` signals end the process at once: Python's handlers do not run while processes find each other."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, signal.SIG_DFL) for number in STOPPING if callable(signal.getsignal(number))
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Context that records signals of `STOPPING`, and ends waiting for storage; a second SIGINT interrupts at once.

    Exit restores the handlers. Signals reach the main thread of a program only: in another thread nothing is handled here.

    Args:
        leave: called on all processes, with the signal, if `Stopped` leaves the context on all of them: when a signal has ended
            an evaluation's waiting for its shards.
    """

    def __init__(self, leave: Callable[[int | None], object] = lambda number: None) -> None:
        self._leave = leave
        self._received: set[int] = set()
        self._before: dict[int, object] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Stopped):
                self._leave(self.agreed([any(votes) for votes in zip(*gather_objects(self.votes()), strict=True)]))
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            if self._received:
                wait_again()

    def votes(self) -> list[bool]:
        """For each of `STOPPING`, whether this process has received it."""
        return [number in self._received for number in STOPPING]

    @property
    def number(self) -> int | None:
        """The signal that this process has received; None if it has not."""
        return self.agreed(self.votes())

    def next_batch(self, batches: Iterator[Batch], last: Batch | None) -> tuple[Batch, bool]:
        """The next batch, and whether it is missing: a signal ended the wait, and this is the previous batch again.

        With it this process joins a step that other processes may have begun; that step updates nothing.

        Raises:
            Interrupted: there is no previous batch: nothing was trained in this session. DataError: the stream ended.
        """
        try:
            batch = next(batches, None)
        except Stopped as stopped:
            if last is not None:
                return last, True
            assert self.number is not None
            raise Interrupted(f"before the first batch came: {stopped}", self.number) from None
        if batch is None:
            raise DataError("the training stream ended before the run did: a stream must repeat its data")
        return batch, False

    @staticmethod
    def agreed(votes: Sequence[bool]) -> int | None:
        """The signal that any process received, from the votes of all; None if none did."""
        return next((int(number) for number, vote in zip(STOPPING, votes, strict=True) if vote), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader worker: its parent decides, and can still end it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if number == signal.SIGINT and number in self._received:
            raise StopSignal(number)
        self._received.add(number)
        stop_waiting()
