"""Texts without their padding: real tokens alone, one after the other, so that no layer works on padding.

Padding costs most of a text tower: captions of web data have 10 to 20 tokens of 77. Leaving it out is exact, because padding has
no influence. Texts stand in order of length, so that those of equal length form one block, in which attention needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the N real tokens of B texts lie in a packed tensor [N, D].

    Attributes:
        order: [B] number of the text that stands at each place.
        lengths: [B] tokens of the text at each place, ascending.
        real: [B, T] bool, which tokens of the ordered texts there are.
        last: [B] row in which the text at each place ends.
        groups: (texts, tokens of each) of each run of texts of equal length.
    """

    order: Tensor
    lengths: Tensor
    real: Tensor
    last: Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """For texts of these lengths, [B], at least 1 each. Reads their values, so a device would be waited for."""
        lengths, order = lengths.sort(stable=True)
        real = torch.arange(int(lengths[-1]), device=lengths.device) < lengths[:, None]
        counts = torch.bincount(lengths).tolist()
        groups = tuple((count, length) for length, count in enumerate(counts) if count)
        return cls(order, lengths, real, lengths.cumsum(0) - 1, groups)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T or more, ...] -> [N, ...]."""
        return x[self.order, : self.real.shape[1]][self.real]

    def unpack(self, x: Tensor, length: int) -> Tensor:
        """[N, D] -> [B, length, D], zero behind the end of each text."""
        columns = torch.arange(self.real.shape[1], device=x.device)
        places = (self.order[:, None] * length + columns)[self.real]
        flat = x.new_zeros(len(self.order) * length, x.shape[1]).index_copy(0, places, x)
        return flat.reshape(-1, length, x.shape[1])

    def restore(self, x: Tensor) -> Tensor:
        """[B, D], one row for each place -> one row for each text, in the order in which they came."""
        return x[self.order.argsort()]

    def means(self, x: Tensor) -> Tensor:
        """[N, D] -> [B, D], the mean over each text's tokens, one row for each place."""
        blocks = torch.split(x, [count * length for count, length in self.groups])
        return torch.cat(
            [
                block.reshape(count, length, -1).mean(1)
                for block, (count, length) in zip(blocks, self.groups, strict=True)
            ]
        )
