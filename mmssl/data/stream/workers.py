"""Worker processes: how many, how started, and what is said when one of them dies or stalls."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmssl.core.batch import Batch
from mmssl.core.compat import end_workers, worker_processes
from mmssl.core.errors import DataError
from mmssl.data.stream.collate import lend, own

StartMethod = Literal["forkserver", "spawn", "fork"]


@dataclass(frozen=True)
class Workers:
    """Worker processes of one stream.

    Attributes:
        count: 0: the same code runs in the calling process.
        prefetch: batches that each worker makes ahead.
        timeout: seconds to wait for one batch before the workers count as stalled; 0: for ever.
        start_method: "forkserver" starts workers from a clean process that has imported torch already: slower by seconds for the
            first stream of a program, quick for later ones, and safe beside CUDA, NCCL and threads. "fork" starts at once, but
            copies a process whose threads may hold locks. "spawn" imports everything anew in each worker.
    """

    count: int = 0
    prefetch: int = 2
    timeout: float = 600.0
    start_method: StartMethod = "forkserver"

    @classmethod
    def of(cls, workers: int | Workers) -> Workers:
        """A plain number stands for that many workers with the usual options."""
        return cls(workers) if isinstance(workers, int) else workers

    def loader(
        self,
        dataset: Located,
        batches: Iterable[list[Any]],
        collate: Callable[[list[Any]], Batch | DataError],
        *,
        persistent: bool,
    ) -> DataLoader[Any]:
        """A DataLoader over a map-style dataset, which asks for the given batches of keys, in their order.

        Args:
            persistent: keep the workers for a second pass.
        """
        # Without a generator of its own the loader would draw from the global one, and a resumed run would differ.
        options: dict[str, Any] = {"generator": torch.Generator()}
        if self.count:
            watched = Watched(dataset, self.count)
            options |= {
                "num_workers": self.count,
                "prefetch_factor": self.prefetch,
                "timeout": self.timeout,
                "persistent_workers": persistent,
                "multiprocessing_context": self._context(),
                "worker_init_fn": partial(_prepare_worker, self.prefetch + 1),
            }
        pin = torch.cuda.is_available()
        source = watched if self.count else dataset
        return DataLoader(source, batch_sampler=batches, collate_fn=collate, pin_memory=pin, **options)

    def _context(self) -> Any:
        context: Any = multiprocessing.get_context(self.start_method)
        if self.start_method == "forkserver":
            context.set_forkserver_preload(["torch", "torch.utils.data", "mmssl.data.stream.batches"])
        return context


class Located(Dataset[Any], ABC):
    """A map-style dataset that can say what a key stands for."""

    @abstractmethod
    def where(self, ticket: Any) -> str:
        """The sample of a key of this dataset, in words."""


class Watched(Dataset[Any]):
    """Notes in shared memory what each worker is at, so that a dead one can still be asked.

    Attributes:
        places: [workers, 2] int64, the (epoch, sample number) that each works on; -1: none.
    """

    def __init__(self, dataset: Located, workers: int) -> None:
        self.dataset = dataset
        self.places = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, ticket: tuple[int, int]) -> Any:
        worker = get_worker_info()
        assert worker is not None
        place = self.places.numpy()[worker.id]
        place[:] = ticket
        row = self.dataset[ticket]
        place[:] = -1
        return row

    def report(self, workers: Sequence[Any]) -> str:
        """What the dead among these processes were at, or what the living are at if none is dead."""
        dead = [number for number, process in enumerate(workers) if not process.is_alive()]
        lines = []
        for number in dead or range(len(workers)):
            epoch, ordinal = self.places[number].tolist()
            at = "between two samples" if ordinal < 0 else f"at {self.dataset.where((epoch, ordinal))}"
            lines.append(f"\n  worker {number}, {'dead' if dead else 'alive'}: {at}")
        return "".join(lines)


def deliver(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        DataError: a sample could not be used (the error comes from a worker as a value, so that its text stays whole), or a worker
            died or stalled.
    """
    with _blocking_user_signals():
        batches = iter(loader)
    if loader.num_workers:
        _running.add(batches)
    # Memory of workers that stays mapped is not mapped again when it comes with the next batch. Pinned batches are copies, of
    # which none is to be held longer than its user does.
    lent: deque[Batch] = deque(
        maxlen=0 if loader.pin_memory else loader.num_workers * (1 + (loader.prefetch_factor or 0))
    )
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise type(batch)(*batch.args)
            lent.append(batch)
            yield own(batch)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):  # torch's own words for trouble with its workers
            raise
        raise DataError(
            f"a data worker stopped or stalled: {error}. If it was killed, memory ran out: lower `workers`, `prefetch` or the "
            "batch size. If it timed out, look at the storage, or raise `timeout`. `workers: 0` shows errors where they arise."
            f"{loader.dataset.report(worker_processes(batches))}"  # type: ignore[attr-defined]
        ) from error
    finally:
        # Whoever keeps an error keeps torch's iterator, and workers whose end is left to the garbage collector take seconds.
        if loader.num_workers and not loader.persistent_workers:
            end_workers(batches)
        del batches, loader, lent


@contextmanager
def _blocking_user_signals() -> Iterator[None]:
    """Processes that are started in the block, and theirs, never receive SIGUSR1 and SIGUSR2.

    `sbatch --signal` sends them to every process of a job. The trainer still needs its workers, and the server that forks them, to
    finish the step. A mask is inherited from the first instant on; a handler would come after the imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_running: weakref.WeakSet[Any] = weakref.WeakSet()  # iterators with worker processes


@atexit.register
def _stop_all() -> None:
    """Python's own farewell to child processes is one SIGTERM, which workers ignore, and then waits for their end."""
    for batches in list(_running):
        end_workers(batches)


def _prepare_worker(slots: int, worker: int) -> None:
    """Runs first in every worker (torch has set it to one thread already)."""
    lend(slots)
    # torch looks whether its parent is another one than before. A worker of the fork server never sees that: its parent is the
    # server, which in turn waits for its workers. Without this, workers of a killed run would stay for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    # Ctrl-C and `timeout` signal the whole process group: the trainer then finishes its step and saves, which a dying worker would
    # turn into an error. Workers end with the stream, or seconds after the trainer is gone.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler may send SIGTERM to every process of a job by number: the trainer still needs its workers to finish the step.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with(sentinel: int) -> None:
    """End this process when the one that started it is gone."""
    connection.wait([sentinel])
    os._exit(1)
