"""Samples that lie in no shard, such as the files of a folder: read one by one, by number, as those of shards are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from mmssl.core.sample import Origin
from mmssl.data.modality import DecodeError
from mmssl.data.shards.index import RawSample
from mmssl.data.shards.manifests import Formats


class LooseRows(Protocol):
    """Rows of a data set, of one sample each.

    Attributes:
        name: of the data set.
        digest: changes when the list of rows changes.
        formats: extension -> name of the format of such members, as in the manifest of shards.
    """

    name: str
    digest: str

    @property
    def formats(self) -> Formats: ...

    def __len__(self) -> int: ...

    def key(self, row: int, /) -> str:
        """Key of a sample; reads no file."""
        ...

    def where(self, row: int, /) -> str:
        """File or line of a row; reads no file."""
        ...

    def members(self, row: int, /) -> Mapping[str, bytes]:
        """Extension -> bytes.

        Raises:
            DecodeError: the row cannot be used.
        """
        ...


class LooseIndex:
    """The rows of a data set as an index of samples; see `SampleIndex`.

    Args:
        opener: opens the rows. It is called here, and again in each worker process, so it must be picklable; rows need not be.

    Raises:
        DataError: see `opener`.
    """

    def __init__(self, opener: Callable[[], LooseRows]) -> None:
        self._opener = opener
        self._open: LooseRows | None = opener()
        self.source = self._open.name
        self.digest = self._open.digest
        self.formats: Sequence[Formats] = (self._open.formats,)
        self._length = len(self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @property
    def _rows(self) -> LooseRows:
        if self._open is None:
            self._open = self._opener()
        return self._open

    def __len__(self) -> int:
        return self._length

    def key(self, number: int) -> str:
        """Key of a sample."""
        return self._rows.key(number)

    def origin(self, number: int) -> Origin:
        """The file or line of a sample in place of a shard."""
        return Origin(self.source, self._rows.where(number), number, 0)

    def identity(self, number: int) -> tuple[str, str, int]:
        """(source, key, number): the key of random draws."""
        return self.source, self.key(number), number

    def folder_starts(self) -> dict[int, range]:
        """All samples have the same formats."""
        return {0: range(len(self))}

    def read(self, number: int, extensions: Collection[str] | None = None) -> RawSample:
        """Bytes of a sample, of the given extensions only (None: all).

        Raises:
            DecodeError: the row cannot be used.
        """
        members = self._rows.members(number)
        if not members:
            raise DecodeError("missing", "the row has no file")
        fields = {name: data for name, data in members.items() if extensions is None or name in extensions}
        return RawSample(self.key(number), self.origin(number), fields, tuple(members), self.formats[0])

    def close(self) -> None:
        """Nothing stays open between reads."""
