"""Checks of shards before a run or an evaluation: members that its modalities read, and that they read them as they are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmssl.core.errors import DataError
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.samples import SampleIndex, describe_lack
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import RemoteReader

_LOOKED_AT = 32
"""Samples of each folder of shards whose members are looked at, the first ones."""


def require_members(indexes: Sequence[ShardIndex], modalities: Mapping[str, Modality]) -> None:
    """Refuse shards in which no sample at all has a modality, even if samples may lack it.

    Raises:
        DataError: names the modality, the members that are there, and the key to change.
    """
    there = sorted({extension for index in indexes for extension in index.extensions})
    for name, modality in modalities.items():
        if not set(there).intersection(modality.extensions):
            first = indexes[0].origin(0).shard
            lack = describe_lack(name, modality.extensions, there, "if none does, choose other shards")
            raise DataError(f"no sample has {name!r} (first shard: {first}): {lack}")


def numbers_to_look_at(index: ShardIndex, count: int, total: int | None = None) -> Sequence[int]:
    """Numbers of up to `count` of the first `total` samples, to look at before a run.

    They are spread evenly, the last one among them; of remote shards they are the first ones, which are fetched together.
    """
    total = min(len(index), total or len(index))
    if total <= count:
        return range(total)
    if isinstance(index.reader, RemoteReader):
        return range(min(count, index.reader.remote.slice))
    return [number * (total - 1) // (count - 1) for number in range(count)]


def check_formats(index: SampleIndex, modalities: Mapping[str, Modality]) -> None:
    """Compare modalities with the manifests of the shards, and let them look at a few members of each folder.

    Raises:
        DataError: a modality would read members otherwise than their manifest says, or than they look without one.
    """
    for shard, samples in index.folder_starts().items():
        for name, modality in modalities.items():
            try:
                reading = modality.reading(index.formats[shard])
                reading.check_members(_members(index, samples[:_LOOKED_AT], modality))
            except ValueError as error:
                raise DataError(f"modalities.{name}.{error} (first shard: {index.origin(samples[0]).shard})") from error


def _members(index: SampleIndex, samples: range, modality: Modality) -> Iterator[tuple[str, bytes]]:
    """The readable members of a modality."""
    for number in samples:
        try:
            yield from index.read(number, modality.extensions).fields.items()
        except DecodeError:  # a fault of this sample, which is for the run to raise or replace
            continue
    index.close()
