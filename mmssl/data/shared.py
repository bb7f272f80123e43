"""Memory in which workers build batches: a few pieces of shared memory, used in turn, instead of a new one for each batch.

A page of shared memory that is touched for the first time costs many times what copying into it does. What comes out of a worker
is therefore a loan: whoever takes it copies it (`own`) before asking for the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.core.batch import Batch


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


def own(batch: Batch) -> Batch:
    """The batch in memory of its own; what is in no worker's memory stays where it is."""
    return batch.map(lambda x: x.clone() if x.is_shared() else x)  # type: ignore[no-untyped-call]


def _shared(size: int) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return storage
