"""Which samples each global batch has, from one source or several with weights: a pure function of the step."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil
from typing import Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.core.errors import DataError
from mmssl.core.seeding import generator
from mmssl.data.stream.order import BlockOrder, GlobalOrder, Order, Ticket
from mmssl.data.stream.sources import Source

Batches = Literal["mixed", "one_source"]


class GlobalShuffleConfig(Config):
    """Every epoch of a source is a random permutation of all its samples; see `GlobalOrder`."""

    kind: Literal["global"] = "global"


class BlockShuffleConfig(Config):
    """Every epoch of a source is a random permutation of slices, a few of which are mixed at a time; see `BlockOrder`.

    Over all processes, lanes x mixed x slice samples are mixed at a time: 16,384 by default, about 1 GB of pictures of 66 kB.

    Attributes:
        lanes: maximum number of lanes; the largest divisor of the global batch that leaves each lane a slice is used.
        slice: number of neighbouring samples of a shard that are fetched together.
        mixed: number of slices that a lane mixes at a time.
    """

    kind: Literal["block"] = "block"
    lanes: int = Field(default=32, ge=1)
    slice: int = Field(default=64, ge=1)
    mixed: int = Field(default=8, ge=1)

    def lanes_for(self, batch_size: int, samples: int) -> int:
        """Number of lanes V for batches of G samples, if the smallest source has `samples`."""
        most = max(1, min(self.lanes, samples // self.slice))
        return max(lanes for lanes in range(1, most + 1) if batch_size % lanes == 0)


class Quotas:
    """Assigns an endless sequence of places to sources: exact shares in blocks, in random order within a block.

    The number of places of a source before any block differs from its exact share by less than one.

    Args:
        weights: of the sources; at least 2 places in 2^20 each.
        key: key of the random draws.

    Attributes:
        block: number of places in a block; each source has at least two.
    """

    def __init__(self, weights: Sequence[Fraction], key: tuple[int | str, ...]) -> None:
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self._bounds = [Fraction(0), *accumulate(self.shares)]
        self._key = key
        self.block = 64
        while self.block * min(self.shares) < 2:
            self.block *= 2
            if self.block > 2**20:
                raise ValueError(
                    f"got {float(min(self.shares)):.2g} as the smallest share of all weights, wanted at least 2e-6"
                )
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def split(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each of the places start ... stop-1, [n] int64, and the number of earlier places of that source, [n] int64."""
        if len(self.shares) == 1:
            return np.zeros(stop - start, np.int64), np.arange(start, stop)
        parts = []
        for number in range(start // self.block, -(-stop // self.block)):
            low, high = max(start - number * self.block, 0), min(stop - number * self.block, self.block)
            parts.append([x[low:high] for x in self._block(number)])
        sources, draws = (np.concatenate(part) for part in zip(*parts, strict=True))
        return sources, draws

    def before(self, place: int) -> list[int]:
        """Number of places of each source before `place`."""
        number, offset = divmod(place, self.block)
        if len(self.shares) == 1:
            return [place]
        inside = np.bincount(self._block(number)[0][:offset], minlength=len(self.shares)).tolist()
        return [a + b for a, b in zip(self._in_front(number), inside, strict=True)]

    def _in_front(self, number: int) -> list[int]:
        """Number of places of each source before block `number`: differences of rounded bounds, so that they sum up exactly."""
        ends = [int(bound * number * self.block + Fraction(1, 2)) for bound in self._bounds]
        return [b - a for a, b in pairwise(ends)]

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._blocks:
            front, behind = self._in_front(number), self._in_front(number + 1)
            counts = [b - a for a, b in zip(front, behind, strict=True)]
            sources = np.repeat(np.arange(len(counts)), counts)
            generator(*self._key, number).shuffle(sources)
            draws = np.empty(self.block, np.int64)
            for source, first in enumerate(front):
                mine = sources == source
                draws[mine] = first + np.arange(counts[source])
            self._blocks = {n: kept for n, kept in self._blocks.items() if n == number - 1} | {number: (sources, draws)}
        return self._blocks[number]


class Mixture:
    """Mixes sources by weight: the tickets (epoch, sample number) of every global batch.

    Row i of a batch belongs to lane iV // G. Each lane has a sequence of places and a share of every source, so that a process has
    whole lanes if the number of processes divides V. `Quotas` assigns places to sources, and the d-th place of a source takes the
    d-th draw of the lane from that source's `Order`: each source has separate, complete epochs, for any weight. Nothing depends on
    the number of processes.

    Args:
        sources: with distinct names.
        batch_size: G.
        seed: of the run.
        batches: "mixed", or "one_source": every global batch holds samples of one source only, and weights count batches.
        shuffle: order of the samples of each source.

    Attributes:
        digest: hash of everything that the order depends on, except the seed and G.

    Raises:
        DataError: a source that is too small for its weight.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        seed: int,
        batches: Batches = "mixed",
        shuffle: GlobalShuffleConfig | BlockShuffleConfig | None = None,
    ) -> None:
        shuffle = shuffle or GlobalShuffleConfig()
        self.names = [source.name for source in sources]
        self.sizes = [len(source.index) for source in sources]
        self.batch_size = batch_size
        self.batches = batches
        self.samples = sum(self.sizes)
        self.offsets = [0, *accumulate(self.sizes)]
        self.lanes = 1
        if isinstance(shuffle, BlockShuffleConfig):
            self.lanes = shuffle.lanes_for(batch_size, min(self.sizes))
        weights = [Fraction(str(source.weight)) for source in sources]
        keys = [(seed, "batches")] if batches == "one_source" else [(seed, "mix", lane) for lane in range(self.lanes)]
        self._quotas = [Quotas(weights, key) for key in keys]
        self._refuse_small()
        self.digest = _digest(sources, batches, shuffle, self.lanes)
        self._orders = [self._order(i, source, seed, shuffle) for i, source in enumerate(sources)]

    def rows(self, step: int, start: int, stop: int) -> list[Ticket]:
        """(epoch of its source, dense sample number) of rows start ... stop-1 of global batch `step`."""
        share = self.batch_size // self.lanes
        out: list[Ticket] = []
        while start < stop:
            lane, first = divmod(start, share)
            last = min(share, first + stop - start)
            out += self._lane(step, lane, first, last)
            start += last - first
        return out

    def drawn(self, step: int) -> list[int]:
        """Samples of each source in all global batches before `step`."""
        if self.batches == "one_source":
            return [count * self.batch_size for count in self._quotas[0].before(step)]
        place = step * (self.batch_size // self.lanes)
        return [sum(counts) for counts in zip(*(quotas.before(place) for quotas in self._quotas), strict=True)]

    def _lane(self, step: int, lane: int, first: int, last: int) -> list[Ticket]:
        share = self.batch_size // self.lanes
        if self.batches == "one_source":
            (source,), (batch,) = self._quotas[0].split(step, step + 1)
            return self._draws(int(source), lane, int(batch) * share + first, int(batch) * share + last)
        sources, draws = self._quotas[lane].split(step * share + first, step * share + last)
        tickets: list[Ticket] = [(0, 0)] * len(sources)
        for source in np.unique(sources).tolist():
            places = np.flatnonzero(sources == source)
            numbers = draws[places]  # consecutive: they count this source's places
            found = self._draws(source, lane, int(numbers[0]), int(numbers[-1]) + 1)
            for place, ticket in zip(places.tolist(), found, strict=True):
                tickets[place] = ticket
        return tickets

    def _draws(self, source: int, lane: int, start: int, stop: int) -> list[Ticket]:
        offset = self.offsets[source]
        return [(epoch, offset + number) for epoch, number in self._orders[source].draws(lane, start, stop)]

    def _order(
        self, number: int, source: Source, seed: int, shuffle: GlobalShuffleConfig | BlockShuffleConfig
    ) -> Order:
        index = source.index
        # Copies of the same shards under two names must have different orders.
        digest = index.digest if len(self.names) == 1 else f"{source.name}/{index.digest}"
        if isinstance(shuffle, BlockShuffleConfig):
            return BlockOrder(index.shard_sizes(), self.lanes, seed, digest, shuffle.slice, shuffle.mixed)
        return GlobalOrder(len(index), self._most(number), seed, digest, lambda epoch: self._shared(number, epoch))

    def _most(self, source: int) -> int:
        """Maximum number of samples of a source in one global batch."""
        if len(self.names) == 1 or self.batches == "one_source":
            return self.batch_size
        quotas = self._quotas[0]
        a_block = ceil(quotas.block * quotas.shares[source]) + 1
        return min(self.batch_size, (self.batch_size // quotas.block + 2) * a_block)

    def _shared(self, source: int, epoch: int) -> int:
        """Number of samples of the previous epoch in the global batch in which an epoch of a source begins."""
        draw = epoch * self.sizes[source]
        share = self._quotas[0].shares[source] * self.batch_size
        late = int(draw / share) + 2 * self._quotas[0].block
        step = bisect_right(range(late), draw, key=lambda step: self.drawn(step)[source]) - 1
        return draw - self.drawn(step)[source]

    def _refuse_small(self) -> None:
        for name, size, share in zip(self.names, self.sizes, self._quotas[0].shares, strict=True):
            wanted = self.batch_size if self.batches == "one_source" else ceil(share * self.batch_size)
            if size >= wanted:
                continue
            if len(self.names) == 1:
                raise DataError(
                    f"the shards hold {size} samples, fewer than one global batch of {wanted}: "
                    f"add shards, or lower `batch_size` to {size} or less"
                )
            raise DataError(
                f"source {name!r} holds {size} samples, fewer than the {wanted} in each of its batches (weight: a share "
                f"of {float(share):.3g}, global batch: {self.batch_size}): add shards, or lower its weight or `batch_size`"
            )


def _digest(
    sources: Sequence[Source], batches: Batches, shuffle: GlobalShuffleConfig | BlockShuffleConfig, lanes: int
) -> str:
    if len(sources) == 1 and isinstance(shuffle, GlobalShuffleConfig):
        return sources[0].index.digest
    parts = [f"{source.name}\0{source.index.digest}\0{source.weight!r}" for source in sources]
    text = "\0".join([*parts, batches, shuffle.model_dump_json(), str(lanes)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
