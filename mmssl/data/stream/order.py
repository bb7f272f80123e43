"""Order of the samples of a source: a pure function of the seed, independent of workers and ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from mmssl.core.seeding import generator
from mmssl.data.shards.table import slice_starts

Ticket = tuple[int, int]
"""(epoch, sample number): the key of a row for a worker."""


class Order(ABC):
    """An endless sequence of samples of one source for each of V lanes; in each epoch all lanes together have each sample once.

    In every epoch lane v has places vN/V ... (v+1)N/V-1 (rounded down) of the epoch's sequence, so lanes differ by at most one.

    Attributes:
        samples: N. lanes: V.
    """

    def __init__(self, samples: int, lanes: int) -> None:
        if not 1 <= lanes <= samples:
            raise ValueError(
                f"got {lanes} lanes for {samples} samples, wanted at least one lane, and a sample for each"
            )
        self.samples = samples
        self.lanes = lanes
        self.cuts = [samples * lane // lanes for lane in range(lanes + 1)]

    def draws(self, lane: int, start: int, stop: int) -> list[Ticket]:
        """Draws start ... stop-1 of a lane."""
        out: list[Ticket] = []
        size = self.cuts[lane + 1] - self.cuts[lane]
        while start < stop:
            epoch, first = divmod(start, size)
            part = self._part(epoch, lane, first, min(size, first + stop - start))
            out += [(epoch, number) for number in part.tolist()]
            start += len(part)
        return out

    @abstractmethod
    def _part(self, epoch: int, lane: int, first: int, last: int) -> np.ndarray:
        """The first few, at least one, of sample numbers first ... last-1 of the lane in that epoch."""


class GlobalOrder(Order):
    """Full shuffle: every epoch is a random permutation of all samples, in one lane. Reads at random places.

    A batch that spans two epochs could have a sample twice: its second occurrence is then moved to right after the batch. (This
    needs N >= 2 `most`; in smaller sources such a batch may have a sample twice.)

    Memory: 4 bytes a sample for each of at most two epochs.

    Args:
        samples: N.
        most: maximum number of draws from this source in one batch.
        seed: of the run.
        digest: of the source.
        shared: epoch -> number of draws of the previous epoch in the batch in which it begins; default: batches of `most`.
    """

    def __init__(
        self, samples: int, most: int, seed: int, digest: str, shared: Callable[[int], int] | None = None
    ) -> None:
        super().__init__(samples, 1)
        self.most = most
        self.seed = seed
        self.digest = digest
        self._shared = shared or (lambda epoch: epoch * samples % most)
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """All sample numbers in the order of epoch `epoch`, [N] int32 or int64."""
        if epoch not in self._epochs:
            order = self._permutation(epoch)
            shared = self._shared(epoch)
            if shared and self.samples >= 2 * self.most:
                before = self._epochs.get(epoch - 1, None)
                before = self._permutation(epoch - 1) if before is None else before
                head = order[: self.most]
                clash = np.isin(head, before[-shared:])
                order[: self.most] = head[np.argsort(clash, kind="stable")]
            self._epochs = {e: kept for e, kept in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def _part(self, epoch: int, lane: int, first: int, last: int) -> np.ndarray:
        return self.epoch(epoch)[first:last]

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.arange(self.samples, dtype=np.int32 if self.samples < 2**31 else np.int64)
        generator(self.seed, "order", self.digest, epoch).shuffle(order)
        return order


class BlockOrder(Order):
    """Block shuffle: every epoch is a random permutation of slices of neighbouring samples; lanes mix a few slices at a time.

    For storage with slow random access: at any time a lane draws from `mixed` slices only, in random order, so V x `mixed` slices
    are in use over all processes, and processes with whole lanes read separate slices. A batch that spans two epochs may have a
    sample twice (with a probability of about G / N for each).

    Memory: 32 bytes a slice and epoch, and 8 bytes a sample of the windows in use.

    Args:
        shards: number of samples of each shard.
        lanes: V.
        seed: of the run.
        digest: of the source.
        size: approximate number of samples in a slice.
        mixed: number of slices that a lane mixes at a time.
    """

    def __init__(
        self, shards: Sequence[int], lanes: int, seed: int, digest: str, size: int = 64, mixed: int = 8
    ) -> None:
        super().__init__(sum(shards), lanes)
        self.seed = seed
        self.digest = digest
        self.window = size * mixed
        self.starts = slice_starts(shards, size)
        self._lengths = np.diff(self.starts, append=self.samples)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def _part(self, epoch: int, lane: int, first: int, last: int) -> np.ndarray:
        window, offset = divmod(first, self.window)
        return self._window(epoch, lane, window)[offset : offset + last - first]

    def _window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """Sample numbers of a lane's window, in the order of drawing."""
        key = (epoch, lane, window)
        if key not in self._windows:
            permuted, ends = self._slices(epoch)
            place = self.cuts[lane] + window * self.window
            stop = min(place + self.window, self.cuts[lane + 1])
            parts = []
            i = int(np.searchsorted(ends, place, "right"))
            while place < stop:
                offset = place - (ends[i] - self._lengths[permuted[i]])
                count = min(stop, ends[i]) - place
                first = self.starts[permuted[i]] + offset
                parts.append(np.arange(first, first + count))
                place, i = place + count, i + 1
            numbers = np.concatenate(parts)
            generator(self.seed, "window", self.digest, *key).shuffle(numbers)
            self._windows[key] = numbers
            if len(self._windows) > 2 * self.lanes:
                self._windows.popitem(last=False)
        return self._windows[key]

    def _slices(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Slices in the order of an epoch, and the end of each in the epoch's sequence."""
        if epoch not in self._epochs:
            permuted = generator(self.seed, "slices", self.digest, epoch).permutation(len(self.starts))
            self._epochs[epoch] = permuted, np.cumsum(self._lengths[permuted])
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]
