"""Check before a run that its modalities read members as the shards mean them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmssl.core.errors import DataError
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import ShardIndex

_LOOKED_AT = 32
"""Samples of each folder of shards whose members are looked at, the first ones."""


def check_formats(index: ShardIndex, modalities: Mapping[str, Modality]) -> None:
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


def _members(index: ShardIndex, samples: range, modality: Modality) -> Iterator[tuple[str, bytes]]:
    """The readable members of a modality."""
    for number in samples:
        try:
            yield from index.read(number, modality.extensions).fields.items()
        except DecodeError:  # a fault of this sample, which is for the run to raise or replace
            continue
    index.reader.close()
