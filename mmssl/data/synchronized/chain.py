"""Synchronized augmentation: one record of parameters for each sample, applied to all of its modalities.

A flip mirrors the frames, swaps the stereo channels and the sides in the caption, or does nothing. Stages: extents from headers ->
window of time -> each modality decodes that window only -> the other operations, in the order of the list -> views, whose
augmentations are not synchronized. Random draws are keyed by (seed, epoch, sample). `Batch.records` has the records; a record
applied again to the same bytes gives bit-equal values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Annotated, Any

from pydantic import Field as Setting

from mmssl.core.sample import Sample
from mmssl.core.seeding import generator
from mmssl.data.draws import DrawKey
from mmssl.data.kernel import Entry, window_of
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, EncodedSample, Samples, read_sample
from mmssl.data.synchronized.mix import Dropout, Gain, Mixup
from mmssl.data.synchronized.negatives import Negative
from mmssl.data.synchronized.operation import Operation, Record, Skip, Values, doubt, kernel_of, transform
from mmssl.data.synchronized.order import Reverse, Roll, TimeMask
from mmssl.data.synchronized.space import Crop, Flip
from mmssl.data.synchronized.time import Speed, TimeCrop, extents_of, first_frame_times, frame_before
from mmssl.data.timeline import Extent

SynchronizedConfig = Annotated[
    TimeCrop | Speed | Flip | Crop | Reverse | Roll | TimeMask | Mixup | Gain | Dropout | Negative,
    Setting(discriminator="kind"),
]


def mistakes(operations: Sequence[Operation], modalities: Mapping[str, Modality]) -> Iterator[str]:
    """Error messages for operations that do not fit together, or do not fit the modalities."""
    kinds = [operation.kind for operation in operations]
    if "time_crop" in kinds[1:]:
        yield "time_crop must come first, and once: it decides what is decoded"
    for kind in ("mixup", "speed"):
        if kinds.count(kind) > 1:
            yield f"got {kind} {kinds.count(kind)} times, wanted it at most once"
    for operation in operations:
        reasons = []
        for name, modality in modalities.items():
            try:
                reason = kernel_of(operation.kind, modality).reason
            except ValueError as error:
                yield str(error)
                continue
            reasons += [f"{name} ({reason})"] if reason else []
        if len(reasons) == len(modalities):
            yield f"{operation.kind} has no effect: {'; '.join(sorted(reasons))}"
        else:
            yield from operation.mistakes(modalities)


class Synchronized:
    """Loads samples, and augments all of their modalities together.

    Args:
        operations: in the order of their application.
        modalities: name -> modality of the samples.
        optional: modalities that samples may lack.

    Raises:
        ValueError: operations that do not fit the modalities; see `mistakes`.
    """

    def __init__(
        self, operations: Iterable[Operation], modalities: Mapping[str, Modality], optional: Collection[str] = ()
    ) -> None:
        self.operations = tuple(operations)
        self.modalities = dict(modalities)
        self.optional = tuple(optional)
        if wrong := list(mistakes(self.operations, self.modalities)):
            raise ValueError("\n".join(wrong))

    def load(self, samples: Samples, number: int, key: DrawKey) -> Sample:
        """Read, decode and augment a sample.

        Args:
            samples: index with the sample and its partners.
            number: its dense number.
            key: key of the random draws, such as (seed, epoch, source, shard, number).

        Returns:
            The augmented values, with their record.

        Raises:
            BadSample: the sample is unusable. DataError: the shard cannot be read.
        """
        return self._load(samples, number, key, None, None)

    def read(self, samples: Samples, number: int) -> EncodedSample:
        """First stage of `load`: read the bytes."""
        return read_sample(samples, number, self.modalities, self.optional)

    def decode(self, encoded: EncodedSample, key: DrawKey, record: Sequence[Entry] | None = None) -> Sample:
        """Second stage of `load`: decode values; only the drawn window if `time_crop` is the first operation.

        Args:
            record: an earlier record to replay; default: draw a new one.

        Returns:
            The sample, with the entry of the window in its record.
        """
        first = self.operations[0] if self.operations else None
        if not isinstance(first, TimeCrop):
            return encoded.decode()
        entry = record[0] if record else self._draw_window(first, encoded.extents, encoded.frame_start, key)
        windows = {name: window_of(entry, name) for name in encoded.members} if entry["applied"] else None
        return replace(encoded.decode(windows), record=(entry,))

    def augment(
        self,
        sample: Sample,
        samples: Samples,
        key: DrawKey,
        record: Sequence[Entry] | None = None,
        upto: int | None = None,
    ) -> Sample:
        """Third stage of `load`: apply the operations without an entry in the sample's record. Loads partners.

        Args:
            record: an earlier record to replay; default: draw a new one.
            upto: apply only the operations before this number; default: all.
        """
        values, entries = sample.values, list(sample.record)
        for position, operation in enumerate(self.operations[:upto]):
            if position < len(sample.record):
                continue
            entry = self._draw(position, operation, values, key) if record is None else record[position]
            partner = None
            if isinstance(operation, Mixup) and entry["applied"]:
                entry, partner = self._partner(samples, sample.index, key, position, entry, values)
            values = transform(entry, values, self.modalities, partner)
            entries.append(entry)
        return replace(sample, values=values, record=tuple(entries))

    def replay(self, samples: Samples, number: int, record: Sequence[Entry]) -> Sample:
        """Load a sample with an earlier record: bit-equal to the result of `load`.

        Raises:
            ValueError: the record has other operations. Others: as `load`.
        """
        return self._load(samples, number, (), record, None)

    def __call__(self, values: Values, key: DrawKey) -> tuple[dict[str, Any], Record]:
        """Augment values that were decoded whole. Mixing has no partner here.

        Returns:
            New values, and the record for `apply`.
        """
        current, entries = dict(values), []
        for position, operation in enumerate(self.operations):
            if isinstance(operation, TimeCrop):
                extents = extents_of(current, self.modalities)
                snap = partial(frame_before, first_frame_times(current, self.modalities))
                entry = self._draw_window(operation, extents, snap, key)
            elif isinstance(operation, Mixup):
                entry = {"op": operation.kind, "applied": False, "skipped": "no_partner"}
            else:
                entry = self._draw(position, operation, current, key)
            current = transform(entry, current, self.modalities)
            entries.append(entry)
        return current, tuple(entries)

    def apply(self, record: Sequence[Entry], values: Values) -> dict[str, Any]:
        """Apply a record of `__call__` to the same values: bit-equal to its result."""
        for entry in record:
            values = transform(entry, values, self.modalities)
        return dict(values)

    def _load(
        self, samples: Samples, number: int, key: DrawKey, record: Sequence[Entry] | None, upto: int | None
    ) -> Sample:
        if record is not None and [entry["op"] for entry in record] != [o.kind for o in self.operations[:upto]]:
            raise ValueError(
                f"got a record of {[entry['op'] for entry in record]}, wanted one of {[o.kind for o in self.operations]}"
            )
        return self.augment(self.decode(self.read(samples, number), key, record), samples, key, record, upto)

    def _draw(self, position: int, operation: Operation, values: Values, key: DrawKey) -> Entry:
        rng = generator(*key, "synchronized", position, operation.kind)
        if float(rng.random()) >= operation.probability:
            return {"op": operation.kind, "applied": False}
        try:
            entry = {"op": operation.kind, "applied": True, **operation.draw(values, self.modalities, rng)}
        except Skip as skip:
            return {"op": operation.kind, "applied": False, "skipped": skip.reason}
        reason = doubt(entry, values, self.modalities)
        return {"op": operation.kind, "applied": False, "skipped": reason} if reason else entry

    def _draw_window(
        self, operation: TimeCrop, extents: Mapping[str, Extent], snap: Callable[[float], float], key: DrawKey
    ) -> Entry:
        # A faster speed needs a longer window for the same final length. Drawing a speed needs no values.
        drawn = (self._draw(i, o, {}, key) for i, o in enumerate(self.operations) if isinstance(o, Speed))
        speed = next((Fraction(entry["factor"]) for entry in drawn if entry["applied"]), Fraction(1))
        rng = generator(*key, "synchronized", 0, operation.kind)
        try:
            entry = operation.draw_window(extents, self.modalities, rng, speed, snap)
        except Skip as skip:
            return {"op": operation.kind, "applied": False, "skipped": skip.reason}
        return {"op": operation.kind, "applied": True, **entry}

    def _partner(
        self, samples: Samples, number: int, key: DrawKey, position: int, entry: Entry, values: Values
    ) -> tuple[Entry, Values | None]:
        """The entry with the partner, and the partner's values; or an entry with the reason for no partner."""
        nobody = {"op": entry["op"], "applied": False}
        if len(samples) < 2:
            return {**nobody, "skipped": "no_partner"}, None
        drawn = int(generator(*key, "partner", position).integers(len(samples) - 1))
        other = entry.get("partner", drawn + (drawn >= number))
        try:
            sample = self._load(samples, other, (*key, "partner"), entry.get("partner_record"), position)
        except BadSample as bad:
            # It counts as a fault only when it is drawn itself.
            return {**nobody, "skipped": f"partner_{bad.fault.reason}"}, None
        if sample.values.keys() < values.keys() or not values.keys() <= sample.values.keys():
            return {**nobody, "skipped": "partner_lacks_a_modality"}, None
        named = {"partner": other, "partner_key": sample.key, "partner_record": list(sample.record)}
        return {**entry, **named}, sample.values
