"""Packed sequences: the tokens of a batch of texts without padding, one text after the other.

Most of a text tower's time goes to padding: captions of web data have 10 to 20 tokens of 77. Leaving it out is exact, because
padding has no influence. Texts are sorted by length, so that texts of equal length form one block, where attention needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Index of a packed batch: where the N real tokens of B texts lie in a tensor [N, D] without padding.

    Attributes:
        order: [B] number of the text at each place.
        lengths: [B] tokens of the text at each place, ascending.
        real: [B, T] bool, True for tokens of the sorted texts, False for padding.
        last: [B] row of the last token of the text at each place.
        groups: (number of texts, tokens of each) for each run of texts of equal length.
    """

    order: Tensor
    lengths: Tensor
    real: Tensor
    last: Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """The packing of texts of these lengths [B], at least 1 each. Reads the values: on a GPU the host would wait for them."""
        lengths, order = lengths.sort(stable=True)
        real = torch.arange(int(lengths[-1]), device=lengths.device) < lengths[:, None]
        counts = torch.bincount(lengths).tolist()
        groups = tuple((count, length) for length, count in enumerate(counts) if count)
        return cls(order, lengths, real, lengths.cumsum(0) - 1, groups)

    def pack(self, x: Tensor) -> Tensor:
        """Padded to packed: [B, T or more, ...] -> [N, ...]."""
        return x[self.order, : self.real.shape[1]][self.real]

    def unpack(self, x: Tensor, length: int) -> Tensor:
        """Packed to padded: [N, D] -> [B, length, D], zero after the end of each text."""
        columns = torch.arange(self.real.shape[1], device=x.device)
        places = (self.order[:, None] * length + columns)[self.real]
        flat = x.new_zeros(len(self.order) * length, x.shape[1]).index_copy(0, places, x)
        return flat.reshape(-1, length, x.shape[1])

    def restore(self, x: Tensor) -> Tensor:
        """Undo the sorting by length: [B, D], one row for each place -> one row for each text in the original order."""
        return x[self.order.argsort()]

    def means(self, x: Tensor) -> Tensor:
        """Mean pooling: [N, D] -> [B, D], the mean over each text's tokens, one row for each place."""
        blocks = torch.split(x, [count * length for count, length in self.groups])
        return torch.cat(
            [
                block.reshape(count, length, -1).mean(1)
                for block, (count, length) in zip(blocks, self.groups, strict=True)
            ]
        )
