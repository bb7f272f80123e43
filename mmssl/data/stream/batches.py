"""Streams of batches: an endless one for training, and one pass for evaluation.

Order and state do not depend on the number of workers or ranks.
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
from mmssl.data.samples import SampleIndex, select_modalities
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import RemoteReader
from mmssl.data.shards.salvage import refuse_large_losses
from mmssl.data.stream.ahead import Ahead
from mmssl.data.stream.audit import Audit
from mmssl.data.stream.formats import check_formats, require_members
from mmssl.data.stream.mixture import Batches, BlockShuffleConfig, GlobalShuffleConfig, Mixture
from mmssl.data.stream.order import Ticket
from mmssl.data.stream.rows import Collate, FaultLimit, Rows
from mmssl.data.stream.sources import Source, Sources
from mmssl.data.stream.workers import Workers, iterate_loader
from mmssl.data.synchronized.operation import Operation

STATE_VERSION = 1


class TrainStream:
    """Endless iterator of training batches: this process' rows of the global batches. Iterate it once; `close` ends its workers.

    `Mixture` decides the samples of global batch s; rank r of W has its rows rG/W ... (r+1)G/W-1. It is a function of seed, G and
    sources alone, and random draws are keyed by (seed, epoch of the source, source, shard, number, modality, view). So batches are
    the same for any number of workers and ranks, and after a resume at any step.

    Args:
        index: the samples, or several sources with weights.
        modalities: name -> modality; those not in `needs` are not decoded.
        needs: modality -> kind of view -> count.
        batch_size: G, samples of the global batch.
        seed: of the order and the random draws.
        workers: number of worker processes, or all their options.
        on_error: "raise", or "substitute": replace an unusable sample by another, drawn from (seed, epoch, sample), and record it
            in `Batch.faults`. The random draws of the row stay those of the original sample.
        max_failures: largest share of faults among the samples of this process, checked after 500 samples; above it the stream
            raises.
        optional: modalities that samples may lack; the batch's `present` marks them.
        synchronized: operations on all modalities of a sample together, in this order, before its views are made.
        batches, shuffle: see `Mixture`.
        audit: folder of the log of used samples, see `Audit`.
        ahead: threads that prefetch slices of remote shards, see `Ahead`.
        rank, world: default: of this process.

    Attributes:
        rows: the map-style dataset of the workers.
        faults: number of faults so far in this process, by reason; zero after a resume.
        notes: note of `Batch.notes` -> number of samples so far in this process; zero after a resume.

    Raises:
        DataError: fewer samples than G; members that are meant otherwise, see `check_formats`. ValueError: G is not a multiple of
            W; views that no modality has; synchronized operations that do not fit the modalities.
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
                f"got a global batch of {batch_size} for {self.world} processes, wanted a positive multiple of {self.world}"
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
        chosen = select_modalities(modalities, needs)
        require_members(joined.indexes, chosen)
        for one in joined.indexes:
            check_formats(one, chosen)
        self.rows = rows = Rows(joined, chosen, needs, seed, on_error, tuple(optional), tuple(synchronized))
        self._forks = Workers.of(workers).count > 0 and Workers.of(workers).start_method == "fork"
        self._make_loader = partial(
            Workers.of(workers).loader, rows, collate=Collate(rows.modalities, needs), persistent=False
        )
        self._fault_limit = FaultLimit(max_failures, self.faults)
        self._lost = tuple(fault for index in joined.indexes for fault in index.lost)
        refuse_large_losses(self._lost, sum(index.gone for index in joined.indexes), len(joined), max_failures)
        self._batches: Iterator[Batch] | None = None
        # A mixture caches the orders around one step, so prefetching has a separate one.
        self._make_ahead = partial(_look_ahead, joined, mixture, self._planned, ahead)
        self._fetches = ahead > 0 and any(isinstance(index.reader, RemoteReader) for index in joined.indexes)
        self._ahead: Ahead | None = None
        self._audit_folder = audit
        self._audit: Audit | None = None

    @property
    def epoch_samples(self) -> int:
        """Samples of all sources together: the draws of one epoch of the run. With weights, a source may have passed more or less
        than one epoch by then (see `drawn`)."""
        return self._mixture.samples

    @property
    def epoch(self) -> float:
        """Epochs of the run so far: returned batches, times G, over `epoch_samples`."""
        return self.step * self.batch_size / self.epoch_samples

    def drawn(self) -> dict[str, Drawn]:
        """Draws from each source by all processes since the start of the run; empty for a single source."""
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
            self._batches = iterate_loader(self._make_loader(map(self.tickets, count(self.step))))
            if self._audit_folder is not None:
                self._audit = Audit(self._audit_folder, self.rank, self.world, self.step)
            if self._fetches and not self._forks:
                self._ahead = self._make_ahead()
        if self._ahead is not None:
            self._ahead.advance(self.step)
        batch = next(self._batches)
        if self._fetches and self._ahead is None:  # start threads after the worker processes are forked
            self._ahead = self._make_ahead()
        if self._audit is not None:
            self._audit.write(
                self.step, batch, self.tickets(self.step), self._mixture.rows(self.step, 0, self.batch_size)
            )
        self.step += 1
        self._fault_limit(len(batch), batch.faults)
        self.notes.update(chain.from_iterable(batch.notes))
        if self._lost and self.step == 1:  # once in a run; only rank 0 has them in its batch
            self._fault_limit.note(self._lost)
            batch = replace(batch, faults=(*(self._lost if self.rank == 0 else ()), *batch.faults))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream for a checkpoint: the returned batches, without prefetched ones. Equal on all processes."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "digest": self._mixture.digest,
            "batch_size": self.batch_size,
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; only before the first batch. The number of workers and ranks may differ.

        Raises:
            ValueError: a batch was already drawn. CheckpointError: the state has another seed, batch size or data set.
        """
        if self._batches is not None:
            raise ValueError("the stream has already started: load its state before the first batch")
        mine = self.state_dict()
        if set(state) != set(mine) or not isinstance(state["step"], int) or state["step"] < 0:
            raise CheckpointError(
                f"got {dict(state)} as the state of the data stream, wanted the entries {sorted(mine)}"
            )
        advice = {
            "version": "the checkpoint was written by another version of mmssl: resume with that version",
            "seed": "resume with the seed of the run",
            "digest": "the shards (files, names, sizes, order), their weights or their shuffling have changed since the run "
            "started: restore them, or start a new run from the weights",
            "batch_size": "resume with the global batch of the run",
        }
        for name, hint in advice.items():
            if state[name] != mine[name]:
                raise CheckpointError(
                    f"got {name} {mine[name]!r} in the data stream, wanted {state[name]!r} as in the checkpoint: {hint}"
                )
        self.step = state["step"]

    def close(self) -> None:
        """End the workers; the stream cannot continue."""
        self._batches = iter(())
        if self._ahead is not None:
            self._ahead.close()
        if self._audit is not None:
            self._audit.close()

    def tickets(self, step: int) -> list[Ticket]:
        """Planned samples of this process' rows of a global batch."""
        return self._planned(self._mixture, step)

    def _planned(self, mixture: Mixture, step: int) -> list[Ticket]:
        """As `tickets`, with the given mixture."""
        share = self.batch_size // self.world
        return mixture.rows(step, self.rank * share, (self.rank + 1) * share)


def _look_ahead(
    sources: Sources[ShardIndex],
    mixture: Callable[[], Mixture],
    planned: Callable[[Mixture, int], list[Ticket]],
    threads: int,
) -> Ahead:
    return Ahead(sources, partial(planned, mixture()), threads)


class _Tickets:
    """The batches of (epoch 0, sample number) of one pass over spans of samples; made while they are read."""

    def __init__(self, spans: Sequence[Sequence[int]], batch_size: int) -> None:
        self.spans, self.batch_size = spans, batch_size

    def __len__(self) -> int:
        return sum(-(-len(span) // self.batch_size) for span in self.spans)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for span in self.spans:
            for start in range(0, len(span), self.batch_size):
                yield [(0, number) for number in span[start : start + self.batch_size]]


class EvalStream:
    """Evaluation batches: one pass over this process' share of the samples, in order; can be iterated again. `close` ends workers.

    Rank r of W has samples rN/W ... (r+1)N/W-1 (rounded down), so shares differ by at most one, and may be empty.

    Args:
        index, modalities, needs, workers, optional, rank, world: as in `TrainStream`; weights of sources count for nothing.
        batch_size: samples of a batch of this process; the last one may be smaller.
        on_error: "raise", or "skip": drop the sample, and record it in `Batch.faults`. Evaluation has no substitutes, as they
            would change the score.
        max_failures: largest share of faults, checked after 500 samples; above it the stream raises.
        seed: of random views; "eval" views are deterministic.
        limit: use only the first `limit` samples; None: all.
        spans: numbers of the samples to go through in place of this process' share; no batch has samples of two spans.
        remedy: advice on unusable samples, for the error message.

    Attributes:
        index: the samples.
        faults: number of faults in this process' latest pass, by reason.
    """

    def __init__(
        self,
        index: SampleIndex | Sequence[Source],
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
        spans: Sequence[Sequence[int]] | None = None,
        remedy: str = "skip them with `on_error: skip` of the evaluation",
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batches of {batch_size} samples, wanted at least one")
        rank = distributed.rank() if rank is None else rank
        world = distributed.world_size() if world is None else world
        joined = Sources[SampleIndex]([source.index for source in index] if isinstance(index, Sequence) else [index])
        total = len(joined) if limit is None else min(limit, len(joined))
        self.index = index
        self.faults: Counter[str] = Counter()
        share = range(rank * total // world, (rank + 1) * total // world)
        self._tickets = _Tickets([share] if spans is None else spans, batch_size)
        chosen = select_modalities(modalities, needs)
        for one in joined.indexes:
            check_formats(one, chosen)
        rows = Rows(joined, chosen, needs, seed, on_error, tuple(optional), remedy=remedy)
        self._make_loader = partial(
            Workers.of(workers).loader, rows, self._tickets, Collate(rows.modalities, needs), persistent=True
        )
        self._loader: Any = None
        self._max_failures = max_failures

    def __len__(self) -> int:
        """Number of batches of one pass; batches without a usable sample are skipped."""
        return len(self._tickets)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._make_loader()
        self.faults.clear()
        fault_limit = FaultLimit(self._max_failures, self.faults)
        for batch in iterate_loader(self._loader):
            fault_limit(len(batch) + len(batch.faults), batch.faults)
            if len(batch):
                yield batch

    def close(self) -> None:
        """End the workers; the next pass starts new ones."""
        self._loader = None
