"""The sources of a mixture, and the samples of several sources under one dense number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from mmssl.data.samples import SampleIndex
from mmssl.data.shards.index import ShardIndex

Index = TypeVar("Index", bound=SampleIndex, covariant=True)


@dataclass(frozen=True)
class Source:
    """A source of a mixture: its samples, and its sampling weight relative to the other sources."""

    index: ShardIndex
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.index.source


class Sources(Generic[Index]):
    """Samples of several sources under one dense number: those of the first source, then those of the second, and so on."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = tuple(indexes)
        self.offsets = [0, *accumulate(len(index) for index in indexes)]

    def __len__(self) -> int:
        return self.offsets[-1]

    def locate(self, ordinal: int) -> tuple[Index, int]:
        """The index of the source of a sample, and the sample's number there."""
        source = bisect_right(self.offsets, ordinal) - 1
        return self.indexes[source], ordinal - self.offsets[source]

    def siblings(self, ordinal: int) -> range:
        """Numbers of all samples of the source of sample `ordinal`."""
        source = bisect_right(self.offsets, ordinal) - 1
        return range(self.offsets[source], self.offsets[source + 1])
