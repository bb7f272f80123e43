"""Dataset and collate function of the workers: (epoch, sample number) to a row of views, rows to a batch. Stateless."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmssl.core.batch import Batch, Needs, Records
from mmssl.core.errors import DataError
from mmssl.core.sample import Fault
from mmssl.core.seeding import generator
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, SampleIndex
from mmssl.data.stream.collate import BatchRow, collate
from mmssl.data.stream.sources import Sources
from mmssl.data.stream.workers import Located
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.operation import Operation, unapplied
from mmssl.data.synchronized.partners import draw_partners

_log = logging.getLogger(__name__)

OnError = Literal["raise", "substitute", "skip"]
_CHECK_AFTER = 500  # samples before the share of faults is checked
SUBSTITUTE = "replace them with `data.on_error: substitute`"
_SUBSTITUTES = 10
_LOGGED = 20


@dataclass(frozen=True)
class Skipped:
    """A sample without a row."""

    faults: tuple[Fault, ...]


class Rows(Located):
    """Map-style data set: (epoch, sample number) -> Row, Skipped, or a DataError as a value.

    Args:
        sources: the samples, by dense number.
        modalities: the modalities in `needs`.
        on_error: see `TrainStream` and `EvalStream`.
        synchronized: operations on all modalities of a sample together, before its views are made.
        remedy: advice on unusable samples, for the error message.
    """

    def __init__(
        self,
        sources: Sources[SampleIndex],
        modalities: Mapping[str, Modality],
        needs: Needs,
        seed: int,
        on_error: OnError,
        optional: tuple[str, ...],
        synchronized: Sequence[Operation] = (),
        remedy: str = SUBSTITUTE,
    ) -> None:
        self.sources = sources
        self.modalities = modalities
        self.needs = needs
        self.seed = seed
        self.on_error = on_error
        self.remedy = remedy
        self.synchronized = Synchronized(synchronized, modalities, optional)

    def __getitem__(self, ticket: tuple[int, int]) -> BatchRow | Skipped | DataError:
        epoch, ordinal = ticket
        meant, number = self.sources.locate(ordinal)
        key = (self.seed, epoch, *meant.identity(number))
        faults: list[Fault] = []
        for attempt in range(1 + _SUBSTITUTES):
            chosen = self._chosen(epoch, ordinal, attempt)
            try:
                index, place = self.sources.locate(chosen)
                sample = self.synchronized.load(index, place, key)
                partners = draw_partners(self.synchronized, index, sample, self.needs, key)
            except BadSample as bad:
                faults.append(bad.fault)
                if self.on_error == "skip":
                    return Skipped(tuple(faults))
                if self.on_error == "raise":
                    return DataError(
                        f"{bad}\nFind all such samples with `mmssl shards check RECIPE` and write the shards without them, or "
                        f"{self.remedy}."
                    )
                continue
            except DataError as error:
                return error
            try:
                parameters = draw_views(sample, self.modalities, self.needs, key, partners)
                views = make_views(sample, self.modalities, self.needs, parameters, partners)
                record = Records.text({"synchronized": sample.record, "views": parameters})
            except Exception as error:
                error.add_note(f"in key {sample.key!r}, {sample.origin}")
                raise
            name = f"{sample.key} ({sample.origin})" if faults else None
            replaced = tuple(replace(fault, substitute=name) for fault in faults)
            return BatchRow(chosen, sample.key, views, replaced, record, unapplied(sample.record))
        return DataError(f"{faults[0]}\n{_SUBSTITUTES} substitutes for it are unusable too, the last: {faults[-1]}")

    def where(self, ticket: tuple[int, int]) -> str:
        """Key, shard and position of a sample, for messages."""
        index, number = self.sources.locate(ticket[1])
        return f"key {index.key(number)!r} ({index.origin(number)})"

    def _chosen(self, epoch: int, ordinal: int, attempt: int) -> int:
        if attempt == 0:
            return ordinal
        siblings = self.sources.siblings(ordinal)
        return siblings[int(generator(self.seed, "substitute", epoch, ordinal, attempt).integers(len(siblings)))]


class Collate:
    """Collate function: rows to a batch, or the first error among them."""

    def __init__(self, modalities: Mapping[str, Modality], needs: Needs) -> None:
        self.modalities = modalities
        self.needs = needs

    def __call__(self, items: Sequence[BatchRow | Skipped | DataError]) -> Batch | DataError:
        for item in items:
            if isinstance(item, DataError):
                return item
        rows = [item for item in items if isinstance(item, BatchRow)]
        skipped = [fault for item in items if isinstance(item, Skipped) for fault in item.faults]
        return collate(rows, self.modalities, self.needs, skipped)


class FaultLimit:
    """Counts and logs faults, and raises when their share exceeds `max_failures`.

    Args:
        max_failures: largest share of faults among samples allowed.
        counts: number of faults by reason, updated here.
    """

    def __init__(self, max_failures: float, counts: Counter[str]) -> None:
        self.max_failures = max_failures
        self.counts = counts
        self.samples = self.failed = 0

    def __call__(self, samples: int, faults: Sequence[Fault]) -> None:
        """Count the samples and faults of a batch.

        Raises:
            DataError: the share of faults is too high.
        """
        self.samples += samples
        self.failed += len(faults)
        self.note(faults)
        if self.samples >= _CHECK_AFTER and self.failed > self.max_failures * self.samples:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self.counts.most_common())
            last = f"; the last: {faults[-1]}" if faults else ""
            raise DataError(
                f"{self.failed} of {self.samples} samples are unusable ({reasons}), wanted at most a share of "
                f"{self.max_failures:g} (`max_failures`){last}\nList them all with `mmssl shards check RECIPE`."
            )

    def note(self, faults: Sequence[Fault]) -> None:
        """Count and log faults. The share lost in damaged shards is checked when they are opened."""
        for fault in faults:
            logged = self.counts.total()
            if logged < _LOGGED:
                _log.warning("%s%s", fault, f"; replaced by {fault.substitute}" if fault.substitute else "")
            elif logged == _LOGGED:
                _log.warning("further unusable samples are counted and not logged")
            self.counts[fault.reason] += 1
