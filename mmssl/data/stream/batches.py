"""Streams of batches: an endless one for training, and one pass for evaluation.

Order and state depend on neither workers nor ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.errors import CheckpointError
from mmssl.core.sample import Drawn
from mmssl.data.modality import Modality
from mmssl.data.samples import select
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import RemoteReader
from mmssl.data.shards.salvage import refuse_large_losses
from mmssl.data.stream.ahead import Ahead
from mmssl.data.stream.audit import Audit
from mmssl.data.stream.mixture import Batches, BlockShuffleConfig, GlobalShuffleConfig, Mixture
from mmssl.data.stream.order import Ticket
from mmssl.data.stream.rows import Collate, Judge, Rows
from mmssl.data.stream.sources import Source, Sources
from mmssl.data.stream.workers import Workers, deliver
from mmssl.data.synchronized.operation import Operation

STATE_VERSION = 1


class TrainStream:
    """Endless batches of this process' rows of the global batches. Iterate it once; `close` ends its workers.

    What global batch s holds is said by `Mixture`, and rank r of W has rows rG/W ... (r+1)G/W-1 of it. It is a function of seed, G
    and sources alone; random draws are keyed by (seed, epoch of the source, source, shard, number, modality, view). So the same
    batches come for any number of workers and ranks, and after a resume anywhere.

    Args:
        index: the samples, or several sources with weights.
        modalities: by name; those that `needs` does not name are not decoded.
        needs: modality -> kind of view -> count.
        batch_size: G, samples of the global batch.
        seed: of order and draws.
        workers: how many processes prepare batches, or all their options.
        on_error: "raise", or "substitute": another sample takes the row, drawn from (seed, epoch, sample), and `Batch.faults`
            says so. The random draws of the row stay those of the sample that was to be there.
        max_failures: share of faults among the samples of this process above which the stream stops, judged after 500 samples.
        optional: modalities that samples may lack; the batch's `present` tells.
        synchronized: operations on all modalities of a sample alike, in this order, before its views are made.
        batches, shuffle: see `Mixture`.
        audit: folder for files with all samples that are used, see `Audit`.
        ahead: threads that fetch remote shards ahead of the workers, see `Ahead`.
        rank, world: default: of this process.

    Attributes:
        rows: what workers do.
        faults: faults so far in this process, by reason; starts at zero on resume.
        notes: what batches had noted of their samples, likewise: note -> how many samples.

    Raises:
        DataError: fewer samples than G. ValueError: G is no multiple of W; views that no modality has; synchronized operations
            that the modalities cannot do.
    """

    def __init__(
        self,
        index: ShardIndex | Sequence[Source],
        modalities: Mapping[str, Modality],
        needs: Needs,
        *,
        batch_size: int,
        seed: int,
        workers: int | Workers = 0,
        on_error: Literal["raise", "substitute"] = "raise",
        max_failures: float = 0.01,
        optional: Collection[str] = (),
        synchronized: Sequence[Operation] = (),
        batches: Batches = "mixed",
        shuffle: GlobalShuffleConfig | BlockShuffleConfig | None = None,
        audit: Path | None = None,
        ahead: int = 8,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        if batch_size < 1 or batch_size % self.world:
            raise ValueError(
                f"got a global batch of {batch_size} for {self.world} processes, wanted a positive multiple of their number"
            )
        self.seed = seed
        self.batch_size = batch_size
        self.step = 0
        self.faults: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        sources = [Source(index)] if isinstance(index, ShardIndex) else list(index)
        mixture = partial(Mixture, sources, batch_size=batch_size, seed=seed, batches=batches, shuffle=shuffle)
        self._mixture = mixture()
        joined = Sources([source.index for source in sources])
        chosen = select(modalities, needs)
        self.rows = rows = Rows(joined, chosen, needs, seed, on_error, tuple(optional), tuple(synchronized))
        self._forks = Workers.of(workers).count > 0 and Workers.of(workers).start_method == "fork"
        self._make_loader = partial(
            Workers.of(workers).loader, rows, collate=Collate(rows.modalities, needs), persistent=False
        )
        self._judge = Judge(max_failures, self.faults)
        self._lost = tuple(fault for index in joined.indexes for fault in index.lost)
        refuse_large_losses(self._lost, sum(index.gone for index in joined.indexes), len(joined), max_failures)
        self._batches: Iterator[Batch] | None = None
        # A mixture keeps what it needs around one step: the one that looks ahead has its own.
        self._make_ahead = partial(_look_ahead, joined, mixture, self._planned, ahead)
        self._fetches = ahead > 0 and any(isinstance(index.reader, RemoteReader) for index in joined.indexes)
        self._ahead: Ahead | None = None
        self._audit_folder = audit
        self._audit: Audit | None = None

    @property
    def epoch_samples(self) -> int:
        """Samples of all sources together. So many draws are an epoch of the run: of several sources that are drawn by weight,
        each has been passed through more or less than once by then (see `drawn`)."""
        return self._mixture.samples

    @property
    def epoch(self) -> float:
        """Epochs of the run so far: batches handed out, times G, over `epoch_samples`."""
        return self.step * self.batch_size / self.epoch_samples

    def drawn(self) -> dict[str, Drawn]:
        """What has been drawn from each source by all processes, since the run began; empty for a single source."""
        if len(self._mixture.names) == 1:
            return {}
        counts, total = self._mixture.drawn(self.step), max(1, self.step * self.batch_size)
        return {
            name: Drawn(count, count / total, count / size)
            for name, count, size in zip(self._mixture.names, counts, self._mixture.sizes, strict=True)
        }

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = deliver(self._make_loader(map(self.tickets, count(self.step))))
            if self._audit_folder is not None:
                self._audit = Audit(self._audit_folder, self.rank, self.world, self.step)
            if self._fetches and not self._forks:
                self._ahead = self._make_ahead()
        if self._ahead is not None:
            self._ahead.advance(self.step)
        batch = next(self._batches)
        if self._fetches and self._ahead is None:  # threads of a process that forks come after its children
            self._ahead = self._make_ahead()
        if self._audit is not None:
            self._audit.write(
                self.step, batch, self.tickets(self.step), self._mixture.rows(self.step, 0, self.batch_size)
            )
        self.step += 1
        self._judge(len(batch), batch.faults)
        self.notes.update(chain.from_iterable(batch.notes))
        if self._lost and self.step == 1:  # told once in a run, by the process that keeps the books
            self._judge.note(self._lost)
            batch = replace(batch, faults=(*(self._lost if self.rank == 0 else ()), *batch.faults))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: batches that were handed out, never those prepared ahead. Equal on all processes."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "digest": self._mixture.digest,
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
            "digest": "the shards are not those that the run began with (other files, names, sizes or order), or they are mixed "
            "in other shares or shuffled in another way: restore what was, or start a new run from the weights",
            "batch_size": "resume with the global batch that the run began with",
        }
        for name, hint in advice.items():
            if state[name] != mine[name]:
                raise CheckpointError(
                    f"the data stream has {name} {mine[name]!r}, and the checkpoint has {state[name]!r}: {hint}"
                )
        self.step = state["step"]

    def stop_waiting(self) -> None:
        """Let nobody wait for storage that fails any longer: the next batch comes, or `Stopped`. A signal handler may call it."""
        for index in self.rows.sources.indexes:
            if isinstance(index.reader, RemoteReader):
                index.reader.stop_waiting()

    def close(self) -> None:
        """End the workers; the stream cannot go on."""
        self._batches = iter(())
        if self._ahead is not None:
            self._ahead.close()
        if self._audit is not None:
            self._audit.close()

    def tickets(self, step: int) -> list[Ticket]:
        """What is planned for this process' rows of a global batch."""
        return self._planned(self._mixture, step)

    def _planned(self, mixture: Mixture, step: int) -> list[Ticket]:
        """This process' rows of a global batch."""
        share = self.batch_size // self.world
        return mixture.rows(step, self.rank * share, (self.rank + 1) * share)


def _look_ahead(
    sources: Sources, mixture: Callable[[], Mixture], planned: Callable[[Mixture, int], list[Ticket]], threads: int
) -> Ahead:
    return Ahead(sources, partial(planned, mixture()), threads)


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
        limit: only the first samples, so many; None: all.

    Attributes:
        index: the samples.
        faults: faults of the latest pass in this process, by reason.
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
        limit: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batches of {batch_size} samples, wanted at least one")
        rank = distributed.rank() if rank is None else rank
        world = distributed.world_size() if world is None else world
        total = len(index) if limit is None else min(limit, len(index))
        self.index = index
        self.samples = range(rank * total // world, (rank + 1) * total // world)
        self.faults: Counter[str] = Counter()
        starts = range(self.samples.start, self.samples.stop, batch_size)
        self._tickets = [[(0, i) for i in range(s, min(s + batch_size, self.samples.stop))] for s in starts]
        remedy = "leave them out of the evaluation with its `on_error: skip`"
        rows = Rows(Sources([index]), select(modalities, needs), needs, seed, on_error, tuple(optional), remedy=remedy)
        self._make_loader = partial(
            Workers.of(workers).loader, rows, self._tickets, Collate(rows.modalities, needs), persistent=True
        )
        self._loader: Any = None
        self._max_failures = max_failures

    def __len__(self) -> int:
        """Batches of one pass; those without any usable sample are left out when it comes to it."""
        return len(self._tickets)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._make_loader()
        self.faults.clear()
        judge = Judge(self._max_failures, self.faults)
        for batch in deliver(self._loader):
            judge(len(batch) + len(batch.faults), batch.faults)
            if len(batch):
                yield batch

    def close(self) -> None:
        """End the workers; the next pass starts new ones."""
        self._loader = None
