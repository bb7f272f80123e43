"""Views of single samples to a batch: stacked, padded where ragged, blank where a sample lacks a modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmssl.core.batch import Batch, Needs
from mmssl.core.sample import Fault
from mmssl.data.modality import Modality, View
from mmssl.data.shared import Ring, ring


@dataclass(frozen=True)
class Row:
    """What becomes one row of a batch.

    Attributes:
        index: dense number of the sample. key: its key.
        views: modality -> view name -> tensor; modalities that the sample lacks have no entry.
        faults: samples that should have been here and could not.
        record: what synchronized augmentation did to it.
    """

    index: int
    key: str
    views: Mapping[str, Mapping[str, Tensor]]
    faults: tuple[Fault, ...] = ()
    record: tuple[Mapping[str, Any], ...] = ()


def collate(
    rows: Sequence[Row], modalities: Mapping[str, Modality], needs: Needs, faults: Sequence[Fault] = ()
) -> Batch:
    """Stack rows.

    Views of equal shape become [B, ...]. Ragged ones, whose dimension 0 differs, become [B, max K, ...], padded with zeros, and
    `lengths[modality]` holds their K. Rows that lack a modality get the view's blank, and `present[modality]` says which have it.

    Args:
        rows: may be empty: then all tensors have 0 rows.
        faults: of samples that have no row.
    """
    memory = ring()
    if memory is not None:
        memory.turn()
    views: dict[str, dict[str, Tensor]] = {}
    present: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    for name, kinds in needs.items():
        has = [name in row.views for row in rows]
        if not all(has):
            present[name] = torch.tensor(has)
        views[name] = {}
        for kind, count in kinds.items():
            view = modalities[name].views[kind]
            for view_name in (f"{kind}{i}" for i in range(count)):
                parts = [row.views[name][view_name] if it else view.blank() for row, it in zip(rows, has, strict=True)]
                if view.ragged:
                    size = torch.tensor([len(part) for part in parts], dtype=torch.int64)
                    if not torch.equal(lengths.setdefault(name, size), size):
                        raise ValueError(f"modality {name!r} has ragged views of different lengths in one batch")
                views[name][view_name] = _stack(parts, view, memory)
    return Batch(
        views=views,
        index=torch.tensor([row.index for row in rows], dtype=torch.int64),
        keys=tuple(row.key for row in rows),
        present=present,
        lengths=lengths,
        faults=(*(replace(fault, row=i) for i, row in enumerate(rows) for fault in row.faults), *faults),
        records=tuple(row.record for row in rows) if any(row.record for row in rows) else (),
    )


def _stack(parts: Sequence[Tensor], view: View, memory: Ring | None) -> Tensor:
    """[B, ...] of B parts."""
    if not parts:
        blank = view.blank()
        return blank.new_zeros((0, *((0, *blank.shape[1:]) if view.ragged else blank.shape)))
    if view.ragged:
        padded = pad_sequence(list(parts), batch_first=True)
        return padded if memory is None else memory.empty(padded.shape, padded.dtype).copy_(padded)
    # Pictures come with their channels last. A batch keeps the order of memory that its rows have: anything else is a slow copy.
    first = parts[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    shape = (len(parts), *(first.shape[dim] for dim in order))
    out = torch.empty(shape, dtype=first.dtype) if memory is None else memory.empty(shape, first.dtype)
    torch.stack([part.permute(order) for part in parts], out=out)
    return out.permute(0, *(1 + order.index(dim) for dim in range(first.dim())))
