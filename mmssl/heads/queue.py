"""Queue (memory bank) of embeddings of earlier steps: negatives of MoCo, neighbours of NNCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """Ring buffer of the last K rows that were pushed, first in first out; starts with random unit rows, drawn when it is built.

    He et al. 2020, "Momentum Contrast" (arXiv:1911.05722). K is the length over all processes, and every process holds all rows:
    push what is gathered, in the order of ranks. A push that goes past the end continues at the start, so K need not be a multiple
    of the batch: the queue always holds exactly the last K rows.

    Attributes:
        rows: [K, E], all negatives. `push` writes in place: read metrics that need the rows before it.
        steps: [K] int64, the step at which each row was pushed; -1 for random rows.
        start: [] int64, place of the oldest row, which the next push replaces.

    Args:
        length: K.
        width: E.
        pushed: number of rows that one step pushes, of the global batch.

    Raises:
        ValueError: the queue is shorter than what one step pushes, so that rows would be lost unseen.
    """

    rows: Tensor
    steps: Tensor
    start: Tensor

    def __init__(self, length: int, width: int, pushed: int) -> None:
        super().__init__()
        if length < pushed:
            raise ValueError(
                f"queue: got a length of {length}, wanted at least {pushed}, the rows that one step pushes; make the queue longer "
                "or batch_size smaller"
            )
        self.register_buffer("rows", F.normalize(torch.randn(length, width), dim=-1))
        self.register_buffer("steps", torch.full((length,), -1))
        self.register_buffer("start", torch.tensor(0))
        self._full = False
        self.register_load_state_dict_pre_hook(_forget_full)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def push(self, rows: Tensor, step: int) -> None:
        """Replace the oldest rows.

        Args:
            rows: [n, E] with n at most K, of all processes, in the order of ranks.
            step: 0-based step at which they are pushed.
        """
        places = (self.start + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows.index_copy_(0, places, rows.to(self.rows.dtype))
        self.steps.index_fill_(0, places, step)
        self.start.copy_((self.start + len(rows)) % len(self.rows))

    def is_full(self) -> bool:
        """Whether every row was pushed, and none is random any more. Reads from the device until it is so, and never again."""
        self._full = self._full or bool((self.steps >= 0).all())
        return self._full

    @torch.no_grad()
    def age(self, step: int) -> Tensor:
        """Mean age of the pushed rows at a 0-based step, [] in steps; 0 while there are random rows only."""
        pushed = self.steps >= 0
        return ((step - self.steps) * pushed).sum() / pushed.sum().clamp(min=1)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """The row with the largest dot product with each row of `x`, [n, E] -> [n, E]; of equal ones the first."""
        return self.rows[(x.to(self.rows.dtype) @ self.rows.T).argmax(1)]


def _forget_full(queue: Queue, *_: object) -> None:
    queue._full = False
