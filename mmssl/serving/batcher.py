"""One forward pass for all inputs that wait: while one is running, the next ones gather."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

RunBatch = Callable[[str, Sequence[Any]], Sequence[Any]]
"""(kind, inputs) -> a result, or an exception, for each input."""


class Batcher:
    """Calls a function in one thread, on as many waiting inputs of one kind as there are, up to `largest`.

    Nothing is delayed: an input that comes to an idle batcher runs at once, alone. Kinds take turns by the age of their inputs.

    Args:
        run: the function; the inputs of a call share its exception.
        largest: number of inputs of a call.
    """

    def __init__(self, run: RunBatch, largest: int) -> None:
        self._run, self._largest = run, largest
        self._waiting: deque[tuple[str, Any, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="forward passes", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Number of inputs that wait."""
        return len(self._waiting)

    def submit(self, kind: str, inputs: Sequence[Any]) -> list[Future[Any]]:
        """Add inputs of one kind to those that wait; the future of each. A cancelled one is not computed.

        Raises:
            RuntimeError: the batcher is closed.
        """
        futures: list[Future[Any]] = [Future() for _ in inputs]
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.extend((kind, one, future) for one, future in zip(inputs, futures, strict=True))
            self._changed.notify()
        return futures

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            kind, _, _ = batch[0]
            try:
                results = self._run(kind, [one for _, one, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, _, future), result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _next(self) -> list[tuple[str, Any, Future[Any]]]:
        """The next batch, of the kind of the oldest input; empty at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                kind = self._waiting[0][0]
                same = [entry for entry in self._waiting if entry[0] == kind][: self._largest]
                taken = {id(future) for _, _, future in same}
                self._waiting = deque(entry for entry in self._waiting if id(entry[2]) not in taken)
                if batch := [entry for entry in same if entry[2].set_running_or_notify_cancel()]:
                    return batch
