"""A batch: views by modality and name, and what goes with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmssl.core.sample import Fault

Views = Mapping[str, Tensor]
Needs = Mapping[str, Mapping[str, int]]
"""What an objective or evaluator wants made: modality -> kind of view -> how many. `{"m": {"crop": 2}}` gives crop0, crop1."""


def merge_needs(*many: Needs) -> dict[str, dict[str, int]]:
    """The smallest needs that cover all of the given ones: views of equal kind are shared, so counts take the maximum."""
    merged: dict[str, dict[str, int]] = {}
    for needs in many:
        for modality, kinds in needs.items():
            for kind, count in kinds.items():
                slot = merged.setdefault(modality, {})
                slot[kind] = max(slot.get(kind, 0), count)
    return merged


@dataclass(frozen=True)
class Batch:
    """Views of B samples. `batch["audio"]["crop0"]` is [B, ...]; sample i stands in row i everywhere.

    Attributes:
        views: modality -> view name -> tensor [B, ...].
        index: [B] int64, dense number of the sample in its data set.
        keys: B sample keys, for people.
        present: modality -> [B] bool, only for modalities that some sample of the batch lacks.
        lengths: modality -> [B] int64, only for views padded in dimension 1: how many entries are real.
        faults: samples of this batch that were replaced, with the reason.
        records: what synchronized augmentation did to each sample, one entry an operation, as plain JSON data; empty without it.
    """

    views: Mapping[str, Views]
    index: Tensor
    keys: tuple[str, ...] = ()
    present: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    records: tuple[tuple[Mapping[str, Any], ...], ...] = ()

    def __getitem__(self, modality: str) -> Views:
        return self.views[modality]

    def __len__(self) -> int:
        return len(self.index)

    def unapplied(self) -> Counter[str]:
        """Synchronized operations that had no meaning for a sample, as "flip: ambiguous_caption" -> how many samples."""
        entries = (entry for record in self.records for entry in record)
        return Counter(f"{entry['op']}: {entry['skipped']}" for entry in entries if "skipped" in entry)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor; used to move, pin and slice."""
        return replace(
            self,
            views={m: {name: function(x) for name, x in views.items()} for m, views in self.views.items()},
            index=function(self.index),
            present={m: function(x) for m, x in self.present.items()},
            lengths={m: function(x) for m, x in self.lengths.items()},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the DataLoader calls this by name)."""
        return self.map(lambda x: x.pin_memory())

    def rows(self, start: int, stop: int) -> Batch:
        """Samples start ... stop-1 as a batch of their own. Faults without a row go with the first sample."""
        part = self.map(lambda x: x[start:stop])
        faults = tuple(
            fault if fault.row is None else replace(fault, row=fault.row - start)
            for fault in self.faults
            if start <= (fault.row or 0) < stop
        )
        return replace(part, keys=self.keys[start:stop], faults=faults, records=self.records[start:stop])

    def chunks(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most `size` samples; together they are this batch."""
        for start in range(0, len(self), size):
            yield self.rows(start, start + size)
