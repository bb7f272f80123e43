"""Statistics of the members of a modality: the inspections of many members, aggregated."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmssl.data.inspection import Inspection

MAX_EXAMPLES = 20
MAX_VALUES = 8  # a table lists at most this number of values; of more it gives their number

MemberPlace = tuple[int, int]
"""Number of the shard, number of the sample in it."""


@dataclass(frozen=True)
class Spread:
    """Distribution of a quantity over samples: mean, percentiles, extremes. All None where nothing was measured."""

    count: int
    mean: float | None = None
    minimum: float | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """The distribution of these values."""
        if not len(values):
            return cls(0)
        low, p5, median, p95, high = np.percentile(values, [0, 5, 50, 95, 100]).tolist()
        return cls(len(values), float(np.mean(values)), low, p5, median, p95, high)

    def text(self, unit: str = "") -> str:
        """One line for people."""
        if self.mean is None:
            return "none"
        unit = unit and f" {unit}"
        if self.minimum == self.maximum:
            return f"{_format_number(self.mean)}{unit} each"
        mean, median, p5, p95, low, high = map(
            _format_number, (self.mean, self.median, self.p5, self.p95, self.minimum, self.maximum)
        )
        return f"mean {mean}, median {median}, 5-95 % {p5} to {p95}, {low} to {high}{unit}"


def _format_number(value: float | None) -> str:
    assert value is not None
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Duplicates:
    """Equal contents in several samples.

    Attributes:
        extra: samples that repeat an earlier one.
        groups: distinct contents that occur more than once.
        examples: some of them, each (what, key of the first sample, key of the second).
    """

    extra: int = 0
    groups: int = 0
    examples: tuple[tuple[str, str, str], ...] = ()

    def text(self) -> str:
        """One line for people."""
        if not self.extra:
            return "none"
        what, first, second = self.examples[0]
        return f"{self.extra:,} samples repeat one of {self.groups:,}, such as {what} in {first} and {second}"


@dataclass(frozen=True)
class ModalityFigures:
    """Statistics of the members of a modality; `Inspection` explains the names.

    Attributes:
        members: how many were inspected.
        lacking: members of several modalities that do not hold this one, such as videos without sound.
        figures: name -> distribution of the numbers.
        counted: name -> value -> members.
        flags: name -> members.
        repeated: contents in several samples; None: not looked for.
        mean, std: of each channel, from 0 to 1 for whole numbers, each member with the same weight; None: not measured.
    """

    members: int
    lacking: int
    figures: Mapping[str, Spread]
    counted: Mapping[str, Mapping[Hashable, int]]
    flags: Mapping[str, int]
    repeated: Duplicates | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def rows(self, name: str) -> Iterator[tuple[str, str]]:
        """Rows of a text table: (name, value)."""
        yield from ((f"{name} {figure}", spread.text()) for figure, spread in self.figures.items())
        yield from ((f"{name} {what}", _values(counts)) for what, counts in self.counted.items())
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                yield f"{name} {what}", "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
        yield from ((f"{name} {flag}", f"{count:,}") for flag, count in self.flags.items())
        if self.lacking:
            yield f"without {name}", f"{self.lacking:,}"
        if self.repeated is not None:
            yield f"equal {name}", self.repeated.text()


def _values(counts: Mapping[Hashable, int]) -> str:
    if len(counts) > MAX_VALUES:
        return f"{len(counts):,} values, {min(counts.values()):,} to {max(counts.values()):,} samples each"
    return ", ".join(f"{value}: {count:,}" for value, count in counts.items())


class Tally:
    """Aggregates the inspections of the members of one modality."""

    def __init__(self) -> None:
        self.members = self.lacking = 0
        self.numbers: dict[str, list[float]] = {}
        self.counted: dict[str, Counter[Hashable]] = {}
        self.flags: Counter[str] = Counter()
        self.moments: list[np.ndarray] = []  # of each member, [2, C]: mean and mean square of each channel
        self.first: dict[bytes, MemberPlace] = {}
        self.repeated: set[bytes] = set()
        self.examples: list[tuple[str, MemberPlace, MemberPlace]] = []
        self.extra = 0

    def add(self, found: Inspection, place: MemberPlace | None = None) -> None:
        """Add the inspection of one member.

        Args:
            place: of its sample, to find duplicates; None: no search for them. Repeats within one sample do not count.
        """
        self.members += 1
        for name, numbers in found.figures.items():
            self.numbers.setdefault(name, []).extend(numbers)
        for name, value in found.counted.items():
            self.counted.setdefault(name, Counter())[value] += 1
        self.flags.update(found.flags)
        if found.channels is not None:
            self.moments.append(_moments(found.channels))
        if place is not None:
            for shown, data in found.items:
                self._look_for(bytes_digest(data), shown, place)

    def report(self, key: Callable[[MemberPlace], str] | None = None) -> ModalityFigures:
        """The statistics of all members added so far.

        Args:
            key: place -> key of the sample, for examples of duplicates; None: duplicates were not searched.
        """
        mean = std = repeated = None
        if self.moments:
            first, second = np.mean(self.moments, axis=0)
            mean, std = tuple(first.tolist()), tuple(np.sqrt(np.maximum(second - first**2, 0)).tolist())
        if key is not None and self.first:
            examples = tuple((what, key(first), key(second)) for what, first, second in self.examples)
            repeated = Duplicates(self.extra, len(self.repeated), examples)
        return ModalityFigures(
            members=self.members,
            lacking=self.lacking,
            figures={name: Spread.of(numbers) for name, numbers in self.numbers.items()},
            counted={name: _sorted_by_value(counts) for name, counts in self.counted.items()},
            flags=dict(sorted(self.flags.items())),
            repeated=repeated,
            mean=mean,
            std=std,
        )

    def _look_for(self, data: bytes, shown: str, place: MemberPlace) -> None:
        first = self.first.setdefault(data, place)
        if first != place:
            self.extra += 1
            if data not in self.repeated and len(self.examples) < MAX_EXAMPLES:
                self.examples.append((shown, first, place))
            self.repeated.add(data)


def bytes_digest(data: bytes) -> bytes:
    """Hash of `data`, 16 bytes, to compare contents."""
    return hashlib.sha256(data).digest()[:16]


def _moments(channels: np.ndarray) -> np.ndarray:
    largest = np.iinfo(channels.dtype).max if np.issubdtype(channels.dtype, np.integer) else 1
    exact = np.dtype(np.float64 if channels.dtype == np.float64 else np.float32)
    values: np.ndarray = channels.reshape(-1, channels.shape[-1]).astype(exact) / largest
    return np.stack([values.mean(0, dtype=np.float64), (values**2).mean(0, dtype=np.float64)])


def _sorted_by_value(counts: Counter[Hashable]) -> dict[Hashable, int]:
    try:
        return dict(sorted(counts.items()))
    except TypeError:  # values of several types
        return dict(counts)
