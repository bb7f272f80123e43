"""Signals that stop a run: noted at once, obeyed at the next step boundary, by all processes together."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; the end of a job; and what `sbatch --signal` sends some time before that."""


class StopSignals:
    """While entered, signals of `HANDLED` are only noted; a second SIGINT interrupts at once. Earlier handlers come back on exit.

    Signals reach the main thread of a program only: in another thread nothing is handled here.
    """

    def __init__(self) -> None:
        self._received: set[int] = set()
        self._before: dict[int, object] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def votes(self) -> list[bool]:
        """For each of `HANDLED`, whether this process has received it."""
        return [number in self._received for number in HANDLED]

    @staticmethod
    def agreed(votes: Sequence[bool]) -> int | None:
        """The signal that some process has received, from the joined `votes`; None if none has."""
        return next((int(number) for number, vote in zip(HANDLED, votes, strict=True) if vote), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader worker: its parent decides, and can still end it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if number == signal.SIGINT and number in self._received:
            raise KeyboardInterrupt
        self._received.add(number)
