"""DataLoader worker processes: their options, start and end, and the error when one dies or stalls."""

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
from mmssl.data.stream.collate import copy_from_shared, start_ring

StartMethod = Literal["forkserver", "spawn", "fork"]


@dataclass(frozen=True)
class Workers:
    """Options of the DataLoader workers of one stream.

    Attributes:
        count: number of worker processes; 0: the same code runs in the calling process.
        prefetch: batches that each worker prepares ahead.
        timeout: seconds to wait for one batch before the workers count as stalled; 0: no limit.
        start_method: "forkserver" starts workers from a clean process that has already imported torch: slower by seconds for the
            first stream of a program, fast for later ones, and safe with CUDA, NCCL and threads. "fork" starts at once, but
            copies a process whose threads may hold locks. "spawn" imports everything again in each worker.
    """

    count: int = 0
    prefetch: int = 2
    timeout: float = 600.0
    start_method: StartMethod = "forkserver"

    @classmethod
    def of(cls, workers: int | Workers) -> Workers:
        """Options of the workers; a number N means N workers with the default options."""
        return cls(workers) if isinstance(workers, int) else workers

    def loader(
        self,
        dataset: Located,
        batches: Iterable[list[Any]],
        collate: Callable[[list[Any]], Batch | DataError],
        *,
        persistent: bool,
    ) -> DataLoader[Any]:
        """Make a DataLoader over a map-style dataset with the given batches of keys, in their order.

        Args:
            persistent: keep the workers for a second pass.
        """
        # Without this generator the loader would draw from the global one, and a resumed run would differ.
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
    """A map-style dataset that can describe the sample of a key."""

    @abstractmethod
    def where(self, ticket: Any) -> str:
        """Describe the sample of a key, for messages."""


class Watched(Dataset[Any]):
    """Records each worker's current sample in shared memory, so that it is known even if the worker dies.

    Attributes:
        places: [workers, 2] int64, the current (epoch, sample number) of each worker; -1: none.
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
        """The current samples of dead workers, or of all if none is dead, for messages."""
        dead = [number for number, process in enumerate(workers) if not process.is_alive()]
        lines = []
        for number in dead or range(len(workers)):
            epoch, ordinal = self.places[number].tolist()
            at = "between two samples" if ordinal < 0 else f"at {self.dataset.where((epoch, ordinal))}"
            lines.append(f"\n  worker {number}, {'dead' if dead else 'alive'}: {at}")
        return "".join(lines)


def iterate_loader(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Iterate over the batches of a loader; errors of workers are raised here.

    Raises:
        DataError: a sample is unusable (workers return the error as a value, which keeps its message), or a worker died or
            stalled.
    """
    with _blocking_user_signals():
        batches = iter(loader)
    if loader.num_workers:
        _running.add(batches)
    # While workers' memory stays mapped, the next batch needs no new mapping. Pinned batches are copies, which are not kept
    # longer than their user keeps them.
    lent: deque[Batch] = deque(
        maxlen=0 if loader.pin_memory else loader.num_workers * (1 + (loader.prefetch_factor or 0))
    )
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch.saying(str(batch))
            lent.append(batch)
            yield copy_from_shared(batch)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):  # torch's message for dead or stalled workers
            raise
        raise DataError(
            f"a data worker stopped or stalled: {error}. If it was killed, memory ran out: lower `workers`, `prefetch` or the "
            "batch size. If it timed out, check the storage, or raise `timeout`. For a full traceback set `workers: 0`."
            f"{loader.dataset.report(worker_processes(batches))}"  # type: ignore[attr-defined]
        ) from error
    finally:
        # A kept exception would keep torch's iterator alive, and workers that the garbage collector ends take seconds.
        if loader.num_workers and not loader.persistent_workers:
            end_workers(batches)
        del batches, loader, lent


@contextmanager
def _blocking_user_signals() -> Iterator[None]:
    """Block SIGUSR1 and SIGUSR2 in processes started within, and in their children.

    `sbatch --signal` sends them to every process of a job. The trainer still needs its workers, and the server that forks them, to
    finish the step. A signal mask is inherited at once; a handler would be installed only after the imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_running: weakref.WeakSet[Any] = weakref.WeakSet()  # iterators with worker processes


@atexit.register
def _stop_all() -> None:
    """Stop all workers at exit: Python would send a SIGTERM, which workers ignore, and then wait for them."""
    for batches in list(_running):
        end_workers(batches)


def _prepare_worker(slots: int, worker: int) -> None:
    """Worker init function (torch has already set one thread)."""
    start_ring(slots)
    # torch checks whether the parent process has changed. A worker of the fork server never sees that: its parent is the
    # server, which in turn waits for its workers. Without this, workers of a killed run would never end.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    # Ctrl-C and `timeout` signal the whole process group: the trainer then finishes its step and saves, which a dying worker would
    # turn into an error. Workers end with the stream, or seconds after the trainer ends.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler may send SIGTERM to every process of a job by number: the trainer still needs its workers to finish the step.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with(sentinel: int) -> None:
    """End this process when the trainer process has ended."""
    connection.wait([sentinel])
    os._exit(1)
