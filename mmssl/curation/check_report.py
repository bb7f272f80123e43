"""The report of an audit of shards: numbers, JSON, and a text table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmssl.core.sample import Fault
from mmssl.curation.figures import ModalityFigures, Spread


@dataclass(frozen=True)
class FieldReport:
    """Audit results of one field (extension).

    Attributes:
        samples: how many samples have it.
        expected: whether every sample should.
        decoded: how many were decoded (0: no modality decodes the extension, or the limit was reached before).
        bytes: distribution of its size.
    """

    samples: int
    expected: bool
    decoded: int
    bytes: Spread


@dataclass(frozen=True)
class CheckReport:
    """The result of an audit.

    Attributes:
        shards: files looked at; shard_samples: samples in each.
        samples: in all; examined: samples whose members were read.
        bytes: size of all shards.
        unverified: shards without a sidecar of their size, whose members could not be compared with checksums.
        fields: extension -> its `FieldReport`.
        fault_counts: "reason field" -> samples; everything in it makes the audit fail.
        faults: the first of them, each with shard, key and offset.
        warnings: sentences about data that trains, but maybe not as intended.
        modalities: name -> statistics of its members. truncated: captions longer than `context_length` CLIP tokens.
    """

    shards: int
    shard_samples: tuple[int, ...]
    samples: int
    examined: int
    bytes: int
    unverified: tuple[str, ...]
    fields: Mapping[str, FieldReport]
    fault_counts: Mapping[str, int]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    modalities: Mapping[str, ModalityFigures]
    truncated: int
    context_length: int

    @property
    def ok(self) -> bool:
        """Whether the audit found no faults; warnings do not count."""
        return not self.fault_counts

    def with_faults(self, faults: Sequence[Fault]) -> CheckReport:
        """The report with further faults of whole shards."""
        counts = Counter(f"{fault.reason} {fault.field}" for fault in faults)
        return replace(self, fault_counts=dict(counts + Counter(self.fault_counts)), faults=(*faults, *self.faults))

    def to_json(self) -> str:
        """The whole report as a JSON object."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1)

    def _checksums(self) -> str:
        if not self.unverified:
            return "compared with the sidecars of all shards"
        more = f" and {len(self.unverified) - 3} more" if len(self.unverified) > 3 else ""
        return (
            f"compared in {self.shards - len(self.unverified)} of {self.shards} shards; "
            "without a sidecar of theirs (`mmssl shards index`): " + ", ".join(self.unverified[:3]) + more
        )

    def table(self) -> str:
        """The report as a text table."""
        rows: list[tuple[str, Any]] = [
            ("shards", f"{self.shards}, {min(self.shard_samples)} to {max(self.shard_samples)} samples each"),
            ("samples", f"{self.samples:,} ({self.examined:,} read and decoded)"),
            ("bytes", f"{self.bytes:,}"),
            ("checksums", self._checksums()),
            *((f".{name}", _field_line(one, self.samples)) for name, one in self.fields.items()),
        ]
        for name, figures in self.modalities.items():
            rows += figures.rows(name)
        if self.truncated:
            rows.append(("captions truncated", f"{self.truncated:,} are longer than {self.context_length} tokens"))
        lines = aligned_lines(rows)
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"fault: {count:,} x {what}" for what, count in self.fault_counts.items()]
        lines += [f"  {fault}" for fault in self.faults[:20]]
        hidden = sum(self.fault_counts.values()) - len(self.faults[:20])
        if hidden > 0:
            lines.append(f"  ... and {hidden:,} more")
        lines.append("no faults" if self.ok else f"{sum(self.fault_counts.values()):,} faults")
        return "\n".join(lines)


def aligned_lines(rows: Iterable[tuple[str, Any]]) -> list[str]:
    """Format rows as lines `name  value`, with the values aligned in a column."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _field_line(report: FieldReport, samples: int) -> str:
    share = f"in {report.samples:,} samples"
    if report.expected and report.samples < samples:
        share += f", {samples - report.samples:,} lack it"
    decoded = f"{report.decoded:,} decoded" if report.decoded else "not decoded"
    return f"{share}, {decoded}, {report.bytes.text('bytes')}"
