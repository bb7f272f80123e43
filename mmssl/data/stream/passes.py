"""Passes over some samples of a data set in random order, for evaluators that train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.errors import DataError
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.data.samples import SampleIndex, select_modalities
from mmssl.data.stream.rows import Collate, FaultLimit, Rows
from mmssl.data.stream.sources import Sources
from mmssl.data.stream.workers import Workers, iterate_loader


class ShuffledPasses:
    """Shuffled passes: this process' rows of the global batches of an epoch, and the workers that make them. `close` ends these.

    Order and random draws are a function of seed and epoch, for any number of workers and processes. A pass has as few batches as
    hold `batch_size` samples at most, of sizes that differ by one at most; processes have as equal shares of them.

    Args:
        index, modalities, needs, workers: as in `TrainStream`.
        numbers: the samples of a pass.
        batch_size: largest number of samples of a global batch.
        seed: of the order and of random views.
        on_error: "raise", or "skip": drop an unusable sample.

    Raises:
        DataError: fewer samples than processes.
    """

    def __init__(
        self,
        index: SampleIndex,
        modalities: Mapping[str, Modality],
        needs: Needs,
        numbers: Sequence[int],
        batch_size: int,
        workers: int | Workers = 0,
        *,
        seed: int,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if len(numbers) < distributed.world_size():
            raise DataError(
                f"got {len(numbers)} samples to train on with {distributed.world_size()} processes, wanted one each"
            )
        self._tickets = _Shuffled(numbers, max(batch_size, distributed.world_size()), seed)
        rows = Rows(Sources[SampleIndex]([index]), select_modalities(modalities, needs), needs, seed, on_error, ())
        collate = Collate(rows.modalities, needs)
        self._loader: Any = Workers.of(workers).loader(rows, self._tickets, collate, persistent=True)

    def __len__(self) -> int:
        """Number of batches of a pass."""
        return self._tickets.steps

    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass: all of its batches, of which skipping may leave an empty one.

        Raises:
            DataError: an unusable sample.
        """
        self._tickets.epoch = number
        fault_limit = FaultLimit(0.01, Counter())
        for batch in iterate_loader(self._loader):
            fault_limit(len(batch) + len(batch.faults), batch.faults)
            yield batch

    def close(self) -> None:
        """End the workers."""
        self._loader = None


class _Shuffled:
    """The (epoch, sample number) of this process' rows, batch by batch, in the order of `epoch`."""

    def __init__(self, numbers: Sequence[int], batch_size: int, seed: int) -> None:
        self.numbers, self.seed, self.epoch = np.asarray(numbers), seed, 0
        self.steps = -(-len(numbers) // batch_size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = generator(self.seed, "pass", self.epoch).permutation(self.numbers).tolist()
        rank, world, n = distributed.rank(), distributed.world_size(), len(order)
        for step in range(self.steps):
            batch = order[step * n // self.steps : (step + 1) * n // self.steps]
            share = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
            yield [(self.epoch, number) for number in share]
