"""Streams of batches: an endless one for training, and one pass for evaluation.

Order and state depend on neither workers nor ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, Literal

from pydantic import Field

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.config import Config
from mmssl.core.errors import CheckpointError, DataError
from mmssl.data.decode import select
from mmssl.data.index import ShardIndex
from mmssl.data.modality import Modality
from mmssl.data.order import Order
from mmssl.data.rows import Collate, Judge, Rows
from mmssl.data.workers import StartMethod, Workers, deliver

STATE_VERSION = 1


class TrainStream:
    """Endless batches of this process' rows of the global batches. Iterate it once; `close` ends its workers.

    Global batch s holds positions sG ... sG+G-1 of the order (see `Order`), and rank r of W has rows rG/W ... (r+1)G/W-1 of it. The
    order is a function of seed, G and shards alone; random draws are keyed by (seed, epoch, sample, modality, view). So the same
    batches come for any number of workers and ranks, and after a resume anywhere.

    Args:
        index: the samples.
        modalities: by name; those that `needs` does not name are not decoded.
        needs: modality -> kind of view -> count.
        batch_size: G, samples of the global batch.
        seed: of order and draws.
        workers: how many processes prepare batches, or all their options.
        on_error: "raise", or "substitute": another sample takes the row, drawn from (seed, epoch, sample), and `Batch.faults`
            says so. The random draws of the row stay those of the sample that was to be there.
        max_failures: share of faults among the samples of this process above which the stream stops, judged after 500 samples.
        optional: modalities that samples may lack; the batch's `present` tells.
        rank, world: default: of this process.

    Attributes:
        faults: faults so far in this process, by reason; starts at zero on resume.

    Raises:
        DataError: fewer samples than G. ValueError: G is no multiple of W; views that no modality has.
    """

    def __init__(
        self,
        index: ShardIndex,
        modalities: Mapping[str, Modality],
        needs: Needs,
        *,
        batch_size: int,
        seed: int,
        workers: int | Workers = 0,
        on_error: Literal["raise", "substitute"] = "raise",
        max_failures: float = 0.01,
        optional: Collection[str] = (),
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        if batch_size < 1 or batch_size % self.world:
            raise ValueError(
                f"got a global batch of {batch_size} for {self.world} processes, wanted a positive multiple of their number"
            )
        if len(index) < batch_size:
            raise DataError(
                f"the shards hold {len(index)} samples, fewer than one global batch of {batch_size}: "
                f"add shards, or lower `batch_size` to {len(index)} or less"
            )
        self.seed = seed
        self.batch_size = batch_size
        self.step = 0
        self.faults: Counter[str] = Counter()
        self._digest = index.digest
        self._order = Order(len(index), batch_size, seed, index.digest)
        rows = Rows(index, select(modalities, needs), needs, seed, on_error, tuple(optional))
        self._make_loader = partial(
            Workers.of(workers).loader, rows, collate=Collate(rows.modalities, needs), persistent=False
        )
        self._judge = Judge(max_failures, self.faults)
        self._batches: Iterator[Batch] | None = None

    @property
    def epoch_samples(self) -> int:
        """N, samples of one pass."""
        return self._order.samples

    @property
    def epoch(self) -> float:
        """Passes over the data so far: batches handed out, times G, over N."""
        return self.step * self.batch_size / self.epoch_samples

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = deliver(self._make_loader(self._tickets(self.step)))
        batch = next(self._batches)
        self.step += 1
        self._judge(len(batch), batch.faults)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: batches that were handed out, never those prepared ahead. Equal on all processes."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "digest": self._digest,
            "batch_size": self.batch_size,
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; before the first batch only. Workers and ranks may be other in number than they were.

        Raises:
            ValueError: a batch was drawn already. CheckpointError: the state is of another seed, batch size or data set.
        """
        if self._batches is not None:
            raise ValueError(
                "the stream has begun, and workers are ahead of it: load its state before the first batch is drawn"
            )
        mine = self.state_dict()
        if set(state) != set(mine) or not isinstance(state["step"], int) or state["step"] < 0:
            raise CheckpointError(
                f"got {dict(state)} as the state of the data stream, wanted the entries {sorted(mine)}"
            )
        advice = {
            "version": "the checkpoint was written by another version of mmssl: resume with that one",
            "seed": "resume with the seed that the run began with",
            "digest": "the shards are not those that the run began with (other files, names, sizes or order): restore them, "
            "or start a new run from the weights",
            "batch_size": "resume with the global batch that the run began with",
        }
        for name, hint in advice.items():
            if state[name] != mine[name]:
                raise CheckpointError(
                    f"the data stream has {name} {mine[name]!r}, and the checkpoint has {state[name]!r}: {hint}"
                )
        self.step = state["step"]

    def close(self) -> None:
        """End the workers; the stream cannot go on."""
        self._batches = iter(())

    def _tickets(self, first: int) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world
        for step in count(first):
            yield self._order.rows(step, self.rank * share, (self.rank + 1) * share)


class EvalStream:
    """One pass over this process' share of the samples, in their order; can be iterated again. `close` ends its workers.

    Rank r of W has samples rN/W ... (r+1)N/W-1 (rounded down), so shares differ by one at most, and may be empty.

    Args:
        index, modalities, needs, workers, optional, rank, world: as in `TrainStream`.
        batch_size: samples of a batch of this process; the last one may be smaller.
        on_error: "raise", or "skip": the sample has no row, and `Batch.faults` says so. Nothing ever takes its place: a score over
            substitutes would be a score of something else.
        max_failures: share of faults above which the stream stops, judged after 500 samples.
        seed: for needs with chance in them; "eval" views have none.

    Attributes:
        faults: faults so far in this process, by reason.
    """

    def __init__(
        self,
        index: ShardIndex,
        modalities: Mapping[str, Modality],
        needs: Needs,
        batch_size: int,
        workers: int | Workers = 0,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_failures: float = 0.01,
        optional: Collection[str] = (),
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batches of {batch_size} samples, wanted at least one")
        rank = distributed.rank() if rank is None else rank
        world = distributed.world_size() if world is None else world
        self.samples = range(rank * len(index) // world, (rank + 1) * len(index) // world)
        self.faults: Counter[str] = Counter()
        starts = range(self.samples.start, self.samples.stop, batch_size)
        self._tickets = [[(0, i) for i in range(s, min(s + batch_size, self.samples.stop))] for s in starts]
        rows = Rows(index, select(modalities, needs), needs, seed, on_error, tuple(optional))
        self._make_loader = partial(
            Workers.of(workers).loader, rows, self._tickets, Collate(rows.modalities, needs), persistent=True
        )
        self._loader: Any = None
        self._judge = Judge(max_failures, self.faults)

    def __len__(self) -> int:
        """Batches of one pass; those without any usable sample are left out when it comes to it."""
        return len(self._tickets)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._make_loader()
        for batch in deliver(self._loader):
            self._judge(len(batch) + len(batch.faults), batch.faults)
            if len(batch):
                yield batch

    def close(self) -> None:
        """End the workers; the next pass starts new ones."""
        self._loader = None


class DataConfig(Config):
    """The training data of a recipe.

    Attributes:
        shards: paths, folders, globs or brace patterns of local tar files, as in `train/{000000..000127}.tar`.
        workers: processes of each rank that prepare batches.
        prefetch, timeout, start_method: see `Workers`.
        on_error: "raise": the first sample that cannot be used ends the run; "substitute": another takes its place, counted.
        max_failures: share of such samples that is borne, judged after 500 samples.
        optional: modalities that samples may lack.
    """

    shards: tuple[str, ...] = Field(min_length=1)
    workers: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=1)
    timeout: float = Field(default=600.0, ge=0)
    start_method: StartMethod = "forkserver"
    on_error: Literal["raise", "substitute"] = "raise"
    max_failures: float = Field(default=0.01, ge=0, le=1)
    optional: tuple[str, ...] = ()

    def build(
        self, modalities: Mapping[str, Modality], needs: Needs, *, batch_size: int, seed: int, source: str = "train"
    ) -> TrainStream:
        """Index the shards and make the stream.

        Raises:
            DataError: the shards are missing or damaged, or hold too few samples. ValueError: see `TrainStream`.
        """
        return TrainStream(
            ShardIndex.open(self.shards, source=source),
            modalities,
            needs,
            batch_size=batch_size,
            seed=seed,
            workers=Workers(self.workers, self.prefetch, self.timeout, self.start_method),
            on_error=self.on_error,
            max_failures=self.max_failures,
            optional=self.optional,
        )
