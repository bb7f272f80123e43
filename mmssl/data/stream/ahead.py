"""Prefetch slices of remote shards for the next batches, before a worker asks. The order is known, so this is exact."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from mmssl.core.errors import DataError, Stopped
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import RemoteReader
from mmssl.data.stream.order import Ticket
from mmssl.data.stream.sources import Sources

_log = logging.getLogger(__name__)

_MOST_STEPS = 1000


class Ahead:
    """Prefetch threads of one process: fetch slices into the cache in the order of their use.

    They prefetch at most a quarter of the cache, so that no slice is evicted before its use. A worker that needs a slice earlier
    fetches it, or waits for the thread that does: no slice is fetched twice.

    Args:
        sources: where the samples are.
        plan: step -> tickets of this process.
        threads: number of slices to fetch in parallel.
    """

    def __init__(self, sources: Sources[ShardIndex], plan: Callable[[int], Iterable[Ticket]], threads: int) -> None:
        self._sources = sources
        self._plan = plan
        caches = [i.reader.remote.cache for i in sources.indexes if isinstance(i.reader, RemoteReader)]
        self._limit = min((cache.max_bytes for cache in caches), default=0) // 4
        self._next = 0
        self._ahead: deque[tuple[int, int]] = deque()  # (step, bytes) of requested slices that no batch has used yet
        self._asked: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # slice -> last step so far that needs it
        self._jobs: SimpleQueue[tuple[RemoteReader, int, int] | None] = SimpleQueue()
        self._ended = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads if caches else 0)]
        for thread in self._threads:
            thread.start()

    def advance(self, step: int) -> None:
        """Request the slices of the steps after `step`, the next one to be returned."""
        if not self._threads or self._ended:
            return
        self._next = max(self._next, step)
        while self._ahead and self._ahead[0][0] < step:
            self._ahead.popleft()
        while self._asked and next(iter(self._asked.values())) < step:
            self._asked.popitem(last=False)  # it may be evicted before its next use
        waiting = sum(size for _, size in self._ahead)
        while self._next < step + _MOST_STEPS and waiting < self._limit:
            new = self._ask(self._next)
            self._ahead.append((self._next, new))
            waiting += new
            self._next += 1

    def close(self) -> None:
        """Stop the threads after their current slice."""
        self._ended = True
        for _ in self._threads:
            self._jobs.put(None)

    def _ask(self, step: int) -> int:
        """Queue the slices of a step that no earlier step needs; returns their bytes."""
        total = 0
        for _, ordinal in self._plan(step):
            index, number = self._sources.locate(ordinal)
            reader = index.reader
            if not isinstance(reader, RemoteReader):
                continue
            shard, first, last = index.place(number)
            for piece in range(reader.slice_of(shard, first), reader.slice_of(shard, last) + 1):
                key = (id(reader), shard, piece)
                if key not in self._asked:
                    self._jobs.put((reader, shard, piece))
                    total += reader.slice_bytes(shard, piece)
                self._asked[key] = step
                self._asked.move_to_end(key)
        return total

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._ended:
                continue
            reader, shard, piece = job
            try:
                reader.fetch(shard, piece)
            except Stopped:
                self._ended = True
            except DataError as error:
                # The worker that needs the slice fetches it, and ends the run if that fails too.
                self._ended = True
                _log.warning("prefetching stopped: %s", error)
