"""Views of single samples to a batch: stacked, padded where ragged, blank where a sample lacks a modality.

Workers build batches in a few pieces of shared memory, used in turn, instead of a new one for each batch: a page of shared memory
that is touched for the first time costs many times what copying into it does. What comes out of a worker is therefore a loan:
whoever takes it copies it (`own`) before asking for the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmssl.core.batch import Batch, Needs, Records, view_names
from mmssl.core.sample import Fault
from mmssl.data.modality import Modality, View


class Ring:
    """Pieces of shared memory of one worker.

    Args:
        slots: batches that can be lent at a time. A worker is asked for the next batch when one is taken, and that one may still
            be in use: with n batches asked for ahead, n + 1.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"got {slots} slots, wanted at least 1")
        self._pieces: list[list[torch.UntypedStorage]] = [[] for _ in range(slots)]
        self._slot = self._next = 0

    def turn(self) -> None:
        """The next batch begins: its tensors take the memory of the oldest one."""
        self._slot, self._next = (self._slot + 1) % len(self._pieces), 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of this batch, with whatever an older one left in it."""
        pieces, number = self._pieces[self._slot], self._next
        self._next += 1
        size = max(1, math.prod(shape) * dtype.itemsize)
        if number == len(pieces):
            pieces.append(_shared(size))
        elif pieces[number].nbytes() < size:
            pieces[number] = _shared(size)
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        return torch.empty(0, dtype=dtype).set_(pieces[number], 0, tuple(shape), strides)


_rings: list[Ring] = []  # of this process: one in a worker, none elsewhere


def lend(slots: int) -> None:
    """From now on this process is a worker, and its batches are lent."""
    _rings[:] = [Ring(slots)]


def ring() -> Ring | None:
    """The ring of this process, if it is a worker."""
    return _rings[0] if _rings else None


@dataclass(frozen=True)
class Row:
    """What becomes one row of a batch.

    Attributes:
        index: dense number of the sample. key: its key.
        views: modality -> view name -> tensor; modalities that the sample lacks have no entry.
        faults: samples that should have been here and could not.
        record: what was drawn for it, as text. notes: what is to be counted of it; see `Batch`.
    """

    index: int
    key: str
    views: Mapping[str, Mapping[str, Tensor]]
    faults: tuple[Fault, ...] = ()
    record: str = "{}"
    notes: tuple[str, ...] = ()


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
            for view_name in view_names(kind, count):
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
        records=Records(row.record for row in rows),
        notes=tuple(row.notes for row in rows),
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


def own(batch: Batch) -> Batch:
    """The batch in memory of its own; what is in no worker's memory stays where it is."""
    return batch.map(lambda x: x.clone() if x.is_shared() else x)  # type: ignore[no-untyped-call]


def _shared(size: int) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = torch.UntypedStorage(size).share_memory_()  # type: ignore[no-untyped-call]
    return storage
