"""Packed sequences: the tokens of a batch of texts without padding, one text after the other.

Most of a text tower's time goes to padding: captions of web data have 10 to 20 tokens of 77. Leaving it out is exact, because
padding has no influence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.encoders.attend import attend, attend_ragged

ROUNDED = 128
"""Rows of a ragged packing are a multiple of this number."""


class Packing(ABC):
    """Where the real tokens of B texts lie in a tensor [N, D] without padding, which holds P >= B texts.

    Attributes:
        texts: B.
        positions: [N] place of each token in its text.
        last: [P] row of the last token of each text.
    """

    texts: int
    positions: Tensor
    last: Tensor

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Padded to packed: [B, T or more, ...] -> [N, ...]."""

    @abstractmethod
    def unpack(self, x: Tensor, length: int) -> Tensor:
        """Packed to padded: [N, D] -> [B, length, D], zero after the end of each text."""

    @abstractmethod
    def restore(self, x: Tensor) -> Tensor:
        """Rows of packed texts in the order of the batch: [P, D] -> [B, D]."""

    @abstractmethod
    def means(self, x: Tensor) -> Tensor:
        """Mean pooling: [N, D] -> [P, D], the mean over each text's tokens."""

    @abstractmethod
    def spread(self, x: Tensor, rows: int) -> Tensor:
        """A row of each text of the batch for what is packed: [B, D] -> [P, D] or, for each token, [N, D]; `rows` says which."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """Attention inside each text: q [N or P, heads, D / heads], k and v [N, heads, D / heads] -> [N or P, D]."""


@dataclass(frozen=True)
class SortedPacking(Packing):
    """A packing by length: texts of equal length form one block, where attention needs no mask. P is B.

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
    def of(cls, lengths: Tensor) -> SortedPacking:
        """The packing of texts of these lengths [B], at least 1 each. Reads the values: on a GPU the host would wait for them."""
        lengths, order = lengths.sort(stable=True)
        real = torch.arange(int(lengths[-1]), device=lengths.device) < lengths[:, None]
        counts = torch.bincount(lengths).tolist()
        groups = tuple((count, length) for length, count in enumerate(counts) if count)
        return cls(order, lengths, real, lengths.cumsum(0) - 1, groups)

    @property
    def texts(self) -> int:  # type: ignore[override]
        return len(self.order)

    @cached_property
    def positions(self) -> Tensor:  # type: ignore[override]
        return torch.arange(self.real.shape[1], device=self.real.device).expand_as(self.real)[self.real]

    def pack(self, x: Tensor) -> Tensor:
        return x[self.order, : self.real.shape[1]][self.real]

    def unpack(self, x: Tensor, length: int) -> Tensor:
        columns = torch.arange(self.real.shape[1], device=x.device)
        places = (self.order[:, None] * length + columns)[self.real]
        flat = x.new_zeros(len(self.order) * length, x.shape[1]).index_copy(0, places, x)
        return flat.reshape(-1, length, x.shape[1])

    def restore(self, x: Tensor) -> Tensor:
        return x[self.order.argsort()]

    def means(self, x: Tensor) -> Tensor:
        blocks = torch.split(x, [count * length for count, length in self.groups])
        return torch.cat(
            [
                block.reshape(count, length, -1).mean(1)
                for block, (count, length) in zip(blocks, self.groups, strict=True)
            ]
        )

    def spread(self, x: Tensor, rows: int) -> Tensor:
        x = x[self.order]
        return x if rows == len(x) else x.repeat_interleave(self.lengths, dim=0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        # Texts of equal length lie side by side: a view of their rows is a batch without padding.
        split = []
        for part in (q, k, v):
            single = len(part) == len(self.order)  # one query a text, its last: it sees all of the text
            sizes = [count * (1 if single else length) for count, length in self.groups]
            split.append(torch.split(part, sizes))
        out = []
        for (count, _), *rows in zip(self.groups, *split, strict=True):
            of_batch = (row.unflatten(0, (count, -1)).transpose(1, 2) for row in rows)
            out.append(attend(*of_batch, causal=causal).transpose(1, 2).flatten(0, 1))
        return torch.cat(out).flatten(1)


@dataclass(frozen=True)
class RaggedPacking(Packing):
    """A packing in the order of the batch, for attention that takes bounds of texts; made without any wait for the device.

    The number of rows is rounded up, so that few sizes occur; rows that are left over are a further text, so that P is B + 1.

    Attributes:
        texts, positions, last: see `Packing`; positions of the further text are 0.
        text: [N] number of the text of each token, B for those of the further text.
        lengths: [B] tokens of each text.
        bounds: [B + 2] int32 first row of each text, and N.
        tokens: number of rows that are not of the further text.
        longest: number of tokens of the longest text, or more.
    """

    texts: int
    positions: Tensor
    last: Tensor
    text: Tensor
    lengths: Tensor
    bounds: Tensor
    tokens: int
    longest: int

    @classmethod
    def of(cls, lengths: Tensor, known: Sequence[int]) -> RaggedPacking:
        """The packing of texts of these lengths [B], at least 1 each, which the host knows too."""
        tokens, texts = sum(known), len(known)
        rows = (tokens // ROUNDED + 1) * ROUNDED
        ends = lengths.cumsum(0)
        bounds = F.pad(ends, (1, 1))
        bounds[-1].fill_(rows)
        row = torch.arange(rows, device=lengths.device)
        text = torch.searchsorted(ends, row, right=True)
        positions = (row - bounds[text]).masked_fill(text == texts, 0)
        longest = max(*known, rows - tokens)
        return cls(texts, positions, bounds[1:] - 1, text, lengths, bounds.int(), tokens, longest)

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.text.clamp(max=self.texts - 1) * x.shape[1] + self.positions]

    def unpack(self, x: Tensor, length: int) -> Tensor:
        places = (self.text * length + self.positions)[: self.tokens]
        flat = x.new_zeros(self.texts * length, x.shape[1]).index_copy(0, places, x[: self.tokens])
        return flat.reshape(-1, length, x.shape[1])

    def restore(self, x: Tensor) -> Tensor:
        return x[: self.texts]

    def means(self, x: Tensor) -> Tensor:
        return self.unpack(x, self.longest).sum(1) / self.lengths[:, None]

    def spread(self, x: Tensor, rows: int) -> Tensor:
        x = F.pad(x, (0, 0, 0, 1))
        return x if rows == len(x) else x[self.text]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        single = len(q) == len(self.last)  # one query a text, its last: it sees all of the text
        queries = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) if single else self.bounds
        longest = (1 if single else self.longest, self.longest)
        return attend_ragged(q, k, v, (queries, self.bounds), longest, causal=causal).flatten(1)
