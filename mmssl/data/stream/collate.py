"""Collate views of samples into a batch: stacked, padded if ragged, blank where a sample lacks a modality.

Workers build batches in a ring of shared memory buffers instead of allocating one for each batch: the first touch of a page of
shared memory costs many times as much as copying into it. A batch from a worker is therefore valid only until the next one: copy
it (`copy_from_shared`) before asking for the next batch. Small tensors travel through the pipe, as bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.nn.utils.rnn import pad_sequence

from mmssl.core.batch import Batch, Needs, Records, view_names
from mmssl.core.sample import Fault
from mmssl.data.modality import Modality, View


class Ring:
    """Ring of shared memory buffers of one worker, reused in turn.

    Args:
        slots: number of batches in shared memory at a time. A worker is asked for the next batch while the last one may be in
            use: n + 1 for a prefetch of n batches.
        least: bytes from which on a tensor is in shared memory.
    """

    def __init__(self, slots: int, least: int = 0) -> None:
        if slots < 1:
            raise ValueError(f"got {slots} slots, wanted at least 1")
        self._pieces: list[list[torch.UntypedStorage]] = [[] for _ in range(slots)]
        self._slot = self._next = 0
        self._least = least

    def advance(self) -> None:
        """Start the next batch, which reuses the memory of the oldest one."""
        self._slot, self._next = (self._slot + 1) % len(self._pieces), 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this batch, in shared memory unless it is small."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        if size < self._least:
            return torch.empty(tuple(shape), dtype=dtype)
        pieces, number = self._pieces[self._slot], self._next
        self._next += 1
        if number == len(pieces):
            pieces.append(_shared(size))
        elif pieces[number].nbytes() < size:
            pieces[number] = _shared(size)
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        return torch.empty(0, dtype=dtype).set_(pieces[number], 0, tuple(shape), strides)


SMALL = 1 << 16
"""Bytes of a tensor from which on workers send it in shared memory."""
_rings: list[Ring] = []  # one in a worker process, none elsewhere


def start_ring(slots: int) -> None:
    """Make this process a worker: from now on `collate` builds batches in a ring of shared memory."""
    _rings[:] = [Ring(slots, SMALL)]
    ForkingPickler.register(Tensor, _reduced)


def ring() -> Ring | None:
    """The ring of this process; None outside workers."""
    return _rings[0] if _rings else None


@dataclass(frozen=True)
class BatchRow:
    """One row of a batch: views of a sample, and its record.

    Attributes:
        index: dense number of the sample. key: its key.
        views: modality -> view name -> tensor; modalities that the sample lacks have no entry.
        faults: unusable samples that this one replaces.
        record: drawn parameters, as text. notes: events to count; see `Batch`.
    """

    index: int
    key: str
    views: Mapping[str, Mapping[str, Tensor]]
    faults: tuple[Fault, ...] = ()
    record: str = "{}"
    notes: tuple[str, ...] = ()


def collate(
    rows: Sequence[BatchRow], modalities: Mapping[str, Modality], needs: Needs, faults: Sequence[Fault] = ()
) -> Batch:
    """Collate rows into a batch.

    Views of equal shape become [B, ...]. Ragged ones, whose dimension 0 differs, become [B, max K, ...], padded with zeros, and
    `lengths[modality]` holds their K. Rows that lack a modality get the view's blank; `present[modality]` marks the others.

    Args:
        rows: may be empty: then all tensors have 0 rows.
        faults: faults of samples without a row.
    """
    memory = ring()
    if memory is not None:
        memory.advance()
    views: dict[str, dict[str, Tensor]] = {}
    present: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    trimmable: dict[str, tuple[str, ...]] = {}
    for name, kinds in needs.items():
        has = [name in row.views for row in rows]
        if not all(has):
            present[name] = torch.tensor(has)
        views[name] = {}
        for kind, count in kinds.items():
            view = modalities[name].views[kind]
            if view.trimmable:
                trimmable[name] = (*trimmable.get(name, ()), *view_names(kind, count))
            for view_name in view_names(kind, count):
                parts = [row.views[name][view_name] if it else view.blank() for row, it in zip(rows, has, strict=True)]
                if view.ragged:
                    size = torch.tensor([len(part) for part in parts], dtype=torch.int64)
                    if not torch.equal(lengths.setdefault(name, size), size):
                        raise ValueError(
                            f"got ragged views of modality {name!r} of different lengths in one sample, wanted equal"
                        )
                views[name][view_name] = _stack(parts, view, memory)
    return Batch(
        views=views,
        index=torch.tensor([row.index for row in rows], dtype=torch.int64),
        keys=tuple(row.key for row in rows),
        present=present,
        lengths=lengths,
        trimmable=trimmable,
        faults=(*(replace(fault, row=i) for i, row in enumerate(rows) for fault in row.faults), *faults),
        records=Records(row.record for row in rows),
        notes=tuple(row.notes for row in rows),
    )


def _stack(parts: Sequence[Tensor], view: View, memory: Ring | None) -> Tensor:
    """Stack B tensors into [B, ...], padded if ragged."""
    if not parts:
        blank = view.blank()
        return blank.new_zeros((0, *((0, *blank.shape[1:]) if view.ragged else blank.shape)))
    if view.ragged:
        padded = pad_sequence(list(parts), batch_first=True)
        return padded if memory is None else memory.empty(padded.shape, padded.dtype).copy_(padded)
    # Pictures are channels-last in memory. A batch keeps the memory format of its rows: any other is a slow copy.
    first = parts[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    shape = (len(parts), *(first.shape[dim] for dim in order))
    out = torch.empty(shape, dtype=first.dtype) if memory is None else memory.empty(shape, first.dtype)
    torch.stack([part.permute(order) for part in parts], out=out)
    return out.permute(0, *(1 + order.index(dim) for dim in range(first.dim())))


def _reduced(x: Tensor) -> Any:
    """How a worker sends a tensor: torch would open a file of shared memory for a small one, and send its number over a socket."""
    if x.is_shared() or x.nbytes >= SMALL or not x.is_contiguous() or x.dtype == torch.bfloat16:  # type: ignore[no-untyped-call]
        return reduce_tensor(x)  # type: ignore[no-untyped-call]
    return torch.from_numpy, (x.numpy(),)


def copy_from_shared(batch: Batch) -> Batch:
    """Copy the tensors of a batch that are in shared memory of a worker; others stay."""
    return batch.map(lambda x: _copied(x) if x.is_shared() else x)  # type: ignore[no-untyped-call]


def _copied(x: Tensor) -> Tensor:
    """A dense tensor, copied in its order of memory by this thread alone.

    torch's `clone` wakes its threads, which wait for each other on cores that the workers need: it takes four times the CPU time.
    """
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    copy = torch.from_numpy(x.permute(order).numpy().copy())
    return copy.permute([order.index(dim) for dim in range(x.dim())])


def _shared(size: int) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = torch.UntypedStorage(size).share_memory_()  # type: ignore[no-untyped-call]
    return storage
