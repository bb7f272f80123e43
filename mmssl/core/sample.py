"""One sample between the shard and the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Location of a sample in its shards: its identity is (source, shard, ordinal), never its key, which may repeat."""

    source: str
    shard: str
    ordinal: int
    offset: int

    def __str__(self) -> str:
        return f"sample {self.ordinal} at byte {self.offset} of {self.shard}"


@dataclass(frozen=True)
class Sample:
    """A decoded sample: `values[modality]` is the decoded value; absent modalities have no entry.

    `record` holds the drawn parameters of synchronized augmentation: one entry an operation, plain JSON data.
    """

    key: str
    origin: Origin
    index: int  # dense number within the data set, 0 ... N-1
    values: Mapping[str, Any]
    record: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Partner:
    """Another sample that a view mixes in: its number, its record, and its decoded value of the view's modality."""

    number: int
    record: tuple[Mapping[str, Any], ...]
    value: Any

    def named(self) -> dict[str, Any]:
        """Parameters by which it is loaded again."""
        return {"partner": self.number, "partner_record": list(self.record)}


Partners = Mapping[str, Mapping[str, Partner]]
"""Modality -> view name -> partner that the view mixes in; no entry where there is none."""
NO_PARTNERS: Partners = {}


@dataclass(frozen=True)
class TokenIds:
    """Range of token ids [B, T] that a tokenizer makes or an encoder accepts.

    Attributes:
        context_length: largest T; None: any.
        vocab_size: ids are below this number.
    """

    context_length: int | None
    vocab_size: int


@dataclass(frozen=True)
class Fault:
    """An unusable sample, the reason, and the sample that replaced it (None: none did); without a key: a whole file or folder."""

    key: str
    origin: Origin
    field: str
    reason: str  # a short name to count by: "undecodable", "missing", "too_large", ...
    detail: str
    substitute: str | None = None
    row: int | None = None  # of the batch that it was to stand in

    def __str__(self) -> str:
        place = self.origin if self.origin.offset else self.origin.shard
        what = f"key {self.key!r} ({self.origin})" if self.key else place
        return f"{self.reason} {self.field!r} of {what}: {self.detail}"


@dataclass(frozen=True)
class Drawn:
    """Samples drawn so far from one data source of a mixture.

    Attributes:
        samples: draws. share: of all draws. passes: through the whole source.
    """

    samples: int
    share: float
    passes: float
