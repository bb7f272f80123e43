"""What an audit of shards found, as numbers, as JSON and as a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mmssl.core.sample import Fault


@dataclass(frozen=True)
class Spread:
    """How a quantity is spread over samples. All None where nothing was measured."""

    count: int
    mean: float | None = None
    minimum: float | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """The spread of these values."""
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
            return f"{_short(self.mean)}{unit} each"
        mean, median, p5, p95, low, high = map(
            _short, (self.mean, self.median, self.p5, self.p95, self.minimum, self.maximum)
        )
        return f"mean {mean}, median {median}, 5-95 % {p5} to {p95}, {low} to {high}{unit}"


def _short(value: float | None) -> str:
    assert value is not None
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class FieldReport:
    """One kind of member.

    Attributes:
        samples: how many samples have it.
        expected: whether every sample should.
        decoded: how many were decoded (0: nothing here knows the encoding, or the limit was reached before).
        bytes: spread of its size.
    """

    samples: int
    expected: bool
    decoded: int
    bytes: Spread


@dataclass(frozen=True)
class Duplicates:
    """Equal things in several samples.

    Attributes:
        extra: samples that repeat an earlier one.
        groups: distinct things that occur more than once.
        examples: some of them, each (what, key of the first sample, key of the second).
    """

    extra: int = 0
    groups: int = 0
    examples: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """The result of an audit.

    Attributes:
        shards: files looked at; shard_samples: samples in each.
        samples: in all; examined: samples whose members were read.
        bytes: size of all shards.
        fields: extension -> what is known of it.
        fault_counts: "reason field" -> samples; everything in it makes the audit fail.
        faults: the first of them, each with shard, key and offset.
        warnings: sentences about what trains, but perhaps not as meant.
        width, height: of pictures, pixels.
        words: of captions; captions: how many; truncated: captions longer than `context_length` tokens of CLIP.
        duplicate_images, duplicate_captions: by SHA-256 of the bytes, and by text.
        sound_seconds: of sounds, also of those in videos; silent: how many are quieter than -60 dB below full scale; clipped: how
            many are at full scale for three samples or more.
        video_seconds: of videos; frame_rates: their frames a second; mute: how many have no sound.
    """

    shards: int
    shard_samples: tuple[int, ...]
    samples: int
    examined: int
    bytes: int
    fields: Mapping[str, FieldReport]
    fault_counts: Mapping[str, int]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    width: Spread
    height: Spread
    words: Spread
    captions: int
    truncated: int
    context_length: int
    duplicate_images: Duplicates = field(default_factory=Duplicates)
    duplicate_captions: Duplicates = field(default_factory=Duplicates)
    sound_seconds: Spread = Spread(0)
    silent: int = 0
    clipped: int = 0
    video_seconds: Spread = Spread(0)
    frame_rates: Spread = Spread(0)
    mute: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are no faults."""
        return not self.fault_counts

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1)

    def table(self) -> str:
        """The report for people, lines of text."""
        rows: list[tuple[str, Any]] = [
            ("shards", f"{self.shards}, {min(self.shard_samples)} to {max(self.shard_samples)} samples each"),
            ("samples", f"{self.samples:,} ({self.examined:,} read and decoded)"),
            ("bytes", f"{self.bytes:,}"),
            *((f".{name}", _field_line(one, self.samples)) for name, one in self.fields.items()),
        ]
        if self.width.count:
            rows += [("width", self.width.text("pixels")), ("height", self.height.text("pixels"))]
            rows += [("equal images", _duplicates_line(self.duplicate_images))]
        if self.captions:
            cut = f"{self.truncated:,} of {self.captions:,} longer than {self.context_length} tokens"
            rows += [("caption words", self.words.text()), ("captions cut", cut)]
            rows += [("equal captions", _duplicates_line(self.duplicate_captions))]
        if self.sound_seconds.count:
            rows += [
                ("sounds", self.sound_seconds.text("s")),
                ("silent", f"{self.silent:,}"),
                ("clipped", f"{self.clipped:,}"),
            ]
        if self.video_seconds.count:
            rows += [("videos", self.video_seconds.text("s")), ("frames a second", self.frame_rates.text())]
            rows += [("without sound", f"{self.mute:,}")]
        lines = aligned(rows)
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"fault: {count:,} x {what}" for what, count in self.fault_counts.items()]
        lines += [f"  {fault}" for fault in self.faults[:20]]
        hidden = sum(self.fault_counts.values()) - len(self.faults[:20])
        if hidden > 0:
            lines.append(f"  ... and {hidden:,} more")
        lines.append("no faults" if self.ok else f"{sum(self.fault_counts.values()):,} faults")
        return "\n".join(lines)


def aligned(rows: Iterable[tuple[str, Any]]) -> list[str]:
    """Lines `name  value` with the values below each other."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _field_line(report: FieldReport, samples: int) -> str:
    share = f"in {report.samples:,} samples"
    if report.expected and report.samples < samples:
        share += f", {samples - report.samples:,} lack it"
    decoded = f"{report.decoded:,} decoded" if report.decoded else "not decoded"
    return f"{share}, {decoded}, {report.bytes.text('bytes')}"


def _duplicates_line(duplicates: Duplicates) -> str:
    if not duplicates.extra:
        return "none"
    what, first, second = duplicates.examples[0]
    return f"{duplicates.extra:,} samples repeat one of {duplicates.groups:,}, such as {what} in {first} and {second}"
