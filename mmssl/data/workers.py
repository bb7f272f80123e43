"""Worker processes: how many, how started, and what is said when one of them dies or stalls."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError

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
        dataset: Dataset[Any],
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
            options |= {
                "num_workers": self.count,
                "prefetch_factor": self.prefetch,
                "timeout": self.timeout,
                "persistent_workers": persistent,
                "multiprocessing_context": self._context(),
                "worker_init_fn": _prepare_worker,
            }
        pin = torch.cuda.is_available()
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, pin_memory=pin, **options)

    def _context(self) -> Any:
        context: Any = multiprocessing.get_context(self.start_method)
        if self.start_method == "forkserver":
            context.set_forkserver_preload(["torch", "torch.utils.data", "mmssl.data.stream"])
        return context


def deliver(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        DataError: a sample could not be used (the error comes from a worker as a value, so that its text stays whole), or a worker
            died or stalled.
    """
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise DataError(*batch.args)
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):  # torch's own words for trouble with its workers
            raise
        raise DataError(
            f"a data worker stopped or stalled: {error}. If it was killed, memory ran out: lower `workers`, `prefetch` or the "
            "batch size. If it timed out, look at the storage, or raise `timeout`. `workers: 0` shows errors where they arise."
        ) from error
    finally:
        # An error that somebody keeps holds this frame; workers whose end is left to the garbage collector take seconds to stop.
        del batches, loader


def _prepare_worker(worker: int) -> None:
    """Runs first in every worker (torch has set it to one thread already)."""
    # Ctrl-C and `timeout` signal the whole process group: the trainer then finishes its step and saves, which a dying worker would
    # turn into an error. Workers end with the stream, or seconds after the trainer is gone.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler may send SIGTERM to every process of a job by number: the trainer still needs its workers to finish the step.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
