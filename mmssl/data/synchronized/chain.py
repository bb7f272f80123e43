"""Synchronized augmentation: one record of parameters a sample, applied to every modality of it.

A flip mirrors the frames, swaps the stereo channels and the sides in the caption, or does nothing at all. The life of a sample:
extents from headers -> a window of time -> each modality decodes that window only -> the other operations, in the order of the list
-> views, whose own augmentations are of one modality and not synchronized. Chance is keyed by (seed, epoch, sample). The record
travels with the sample into `Batch.records`, and applied again to the same bytes it gives bit-equal values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Annotated, Any

from pydantic import Field as Setting

from mmssl.core.sample import Sample
from mmssl.core.seeding import generator
from mmssl.data.media.frames import frame_start
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, blamed, decode_members, find_members, read_extents, read_sample
from mmssl.data.shards.index import RawSample, ShardIndex
from mmssl.data.synchronized.mix import Dropout, Gain, Mixup
from mmssl.data.synchronized.negatives import Negative
from mmssl.data.synchronized.operation import (
    CHECKS,
    KERNELS,
    Entry,
    Operation,
    Record,
    Skip,
    Values,
    doubt,
    no_kernel,
    transform,
)
from mmssl.data.synchronized.order import Reverse, Roll, TimeMask
from mmssl.data.synchronized.space import Crop, Flip
from mmssl.data.synchronized.time import Speed, TimeCrop, extents_of, frame_before, window_of
from mmssl.data.timeline import Extent

SynchronizedConfig = Annotated[
    TimeCrop | Speed | Flip | Crop | Reverse | Roll | TimeMask | Mixup | Gain | Dropout | Negative,
    Setting(discriminator="kind"),
]

Key = tuple[int | str, ...]


def mistakes(operations: Sequence[Operation], modalities: Mapping[str, Modality]) -> Iterator[str]:
    """Sentences on operations that cannot be done, together or with these modalities."""
    kinds = [operation.kind for operation in operations]
    if "time_crop" in kinds[1:]:
        yield "time_crop must come first, and once: it decides what is decoded"
    for kind in ("mixup", "speed"):
        if kinds.count(kind) > 1:
            yield f"{kind} comes {kinds.count(kind)} times: once is enough"
    for operation in operations:
        kernels = [(modality, KERNELS.get(operation.kind, {}).get(type(modality))) for modality in modalities.values()]
        yield from (no_kernel(operation.kind, modality) for modality, kernel in kernels if kernel is None)
        reasons = {f"{modality.name} ({kernel.reason})" for modality, kernel in kernels if kernel and kernel.reason}
        if len(reasons) == len(kernels):
            yield f"{operation.kind} would change nothing: {'; '.join(sorted(reasons))}"
        elif operation.kind in CHECKS:
            yield from CHECKS[operation.kind](operation, modalities)


class Synchronized:
    """Loads samples and augments all of their modalities alike.

    Args:
        operations: in the order in which they are applied.
        modalities: all that samples are decoded to.
        optional: those that samples may lack.

    Raises:
        ValueError: operations that cannot be done with these modalities; see `mistakes`.
    """

    def __init__(
        self, operations: Iterable[Operation], modalities: Mapping[str, Modality], optional: Collection[str] = ()
    ) -> None:
        self.operations = tuple(operations)
        self.modalities = dict(modalities)
        self.optional = tuple(optional)
        if wrong := list(mistakes(self.operations, self.modalities)):
            raise ValueError("\n".join(wrong))

    def load(self, index: ShardIndex, ordinal: int, key: Key) -> Sample:
        """Sample `ordinal`, augmented, with its record.

        Args:
            index: where it and its partners lie.
            ordinal: its dense number.
            key: what chance is keyed by, such as (seed, epoch, source, shard, number).

        Raises:
            BadSample: it cannot be used. DataError: the shard cannot be read.
        """
        return self._load(index, ordinal, key, None, len(self.operations))

    def replay(self, index: ShardIndex, ordinal: int, record: Sequence[Entry]) -> Sample:
        """The sample as `load` gave it with this record, bit for bit.

        Raises:
            ValueError: the record is of other operations. Otherwise as `load`.
        """
        return self._load(index, ordinal, (), record, len(self.operations))

    def __call__(self, values: Values, key: Key) -> tuple[dict[str, Any], Record]:
        """Augment values that were decoded whole. There is no partner to mix with here.

        Returns:
            New values, and the record; `apply` does the same again.
        """
        current, entries = dict(values), []
        for position, operation in enumerate(self.operations):
            if isinstance(operation, TimeCrop):
                extents, snap = extents_of(current, self.modalities), partial(frame_before, current)
                entry = self._draw_window(operation, extents, snap, key)
            elif isinstance(operation, Mixup):
                entry = {"op": operation.kind, "applied": False, "skipped": "no_partner"}
            else:
                entry = self._draw(position, operation, current, key)
            current = transform(entry, current, self.modalities)
            entries.append(entry)
        return current, tuple(entries)

    def apply(self, record: Sequence[Entry], values: Values) -> dict[str, Any]:
        """What `__call__` made of these values when it drew this record, bit for bit."""
        for entry in record:
            values = transform(entry, values, self.modalities)
        return dict(values)

    def _load(self, index: ShardIndex, ordinal: int, key: Key, record: Sequence[Entry] | None, upto: int) -> Sample:
        if record is not None and [entry["op"] for entry in record] != [o.kind for o in self.operations[:upto]]:
            raise ValueError(
                f"the record is of {[entry['op'] for entry in record]}, and the operations are {[o.kind for o in self.operations]}"
            )
        raw = read_sample(index, ordinal, self.modalities)
        values, entries = self._decode(raw, key, record)
        for position in range(len(entries), upto):
            operation = self.operations[position]
            entry = self._draw(position, operation, values, key) if record is None else record[position]
            partner = None
            if isinstance(operation, Mixup) and entry["applied"]:
                entry, partner = self._partner(index, ordinal, key, position, entry, values)
            values = transform(entry, values, self.modalities, partner)
            entries.append(entry)
        return Sample(raw.key, raw.origin, ordinal, values, tuple(entries))

    def _draw(self, position: int, operation: Operation, values: Values, key: Key) -> Entry:
        rng = generator(*key, "synchronized", position, operation.kind)
        if float(rng.random()) >= operation.probability:
            return {"op": operation.kind, "applied": False}
        try:
            entry = {"op": operation.kind, "applied": True, **operation.draw(values, self.modalities, rng)}
        except Skip as skip:
            return {"op": operation.kind, "applied": False, "skipped": skip.reason}
        reason = doubt(entry, values, self.modalities)
        return {"op": operation.kind, "applied": False, "skipped": reason} if reason else entry

    def _decode(self, raw: RawSample, key: Key, record: Sequence[Entry] | None) -> tuple[dict[str, Any], list[Entry]]:
        """Values, decoded from the drawn window only where the list begins with `time_crop`, and that entry of the record."""
        members = find_members(raw, self.modalities, self.optional)
        first = self.operations[0] if self.operations else None
        if not isinstance(first, TimeCrop):
            return decode_members(raw, members, self.modalities, self.optional), []
        entry = self._window_of_file(first, raw, members, key) if record is None else record[0]
        windows = {name: window_of(entry, name) for name in members} if entry["applied"] else {}
        return decode_members(raw, members, self.modalities, self.optional, windows), [entry]

    def _draw_window(
        self, operation: TimeCrop, extents: Mapping[str, Extent], snap: Callable[[float], float], key: Key
    ) -> Entry:
        # What comes faster must be longer for the same length to remain; the draw of a speed looks at no value.
        drawn = (self._draw(i, o, {}, key) for i, o in enumerate(self.operations) if isinstance(o, Speed))
        speed = next((Fraction(entry["factor"]) for entry in drawn if entry["applied"]), Fraction(1))
        rng = generator(*key, "synchronized", 0, operation.kind)
        try:
            entry = operation.draw_window(extents, self.modalities, rng, speed, snap)
        except Skip as skip:
            return {"op": operation.kind, "applied": False, "skipped": skip.reason}
        return {"op": operation.kind, "applied": True, **entry}

    def _window_of_file(self, operation: TimeCrop, raw: RawSample, members: Mapping[str, str], key: Key) -> Entry:
        extents = read_extents(raw, members, self.modalities, self.optional)
        films = [members[name] for name in extents if isinstance(self.modalities[name], VideoModality)]

        def snap(start: float) -> float:
            if not films:
                return start
            with blamed(raw, films[0]):
                return frame_start(raw.fields[films[0]], start)

        return self._draw_window(operation, extents, snap, key)

    def _partner(
        self, index: ShardIndex, ordinal: int, key: Key, position: int, entry: Entry, values: Values
    ) -> tuple[Entry, Values | None]:
        """The entry with the partner in it, and the partner's values; or an entry that says why there is none."""
        nobody = {"op": entry["op"], "applied": False}
        if len(index) < 2:
            return {**nobody, "skipped": "no_partner"}, None
        drawn = int(generator(*key, "partner", position).integers(len(index) - 1))
        number = entry.get("partner", drawn + (drawn >= ordinal))
        try:
            sample = self._load(index, number, (*key, "partner"), entry.get("partner_record"), position)
        except BadSample as bad:
            # It is counted as a fault when its own turn comes.
            return {**nobody, "skipped": f"partner_{bad.fault.reason}"}, None
        if sample.values.keys() < values.keys() or not values.keys() <= sample.values.keys():
            return {**nobody, "skipped": "partner_lacks_a_modality"}, None
        named = {"partner": number, "partner_key": sample.key, "partner_record": list(sample.record)}
        return {**entry, **named}, sample.values
