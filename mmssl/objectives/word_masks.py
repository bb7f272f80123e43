"""Masks of words of a text, from a random order of its places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.config import Config


class WordMaskConfig(Config):
    """Which words of a text are masked: a share of them, in spans from random starts on; see `mask_words`.

    Attributes:
        ratio: share of the words of each text that are masked, at least one. BERT: 0.15, data2vec: 0.35.
        span: number of words from each start on. BERT: 1, data2vec: 4.
    """

    ratio: float = Field(gt=0, lt=1)
    span: int = Field(default=1, ge=1)


@torch.no_grad()
def mask_words(order: Tensor, real: Tensor, ratio: float, span: int = 1) -> Tensor:
    """Mask max(1, round(ratio n)) of the n words of each text, [B, T] bool: those at the first places of a random order.

    Words are all real tokens but the first and the last, which mark start and end; a text without words has no mask. With spans,
    each place of the order that is a word masks `span` places from there on, until the number is reached.

    Args:
        order: [B, L] int64, a permutation of the places, L at least T: the view `words`.
        real: [B, T] bool, False at padding.
        ratio: share of the words.
        span: number of places from each start on.

    Raises:
        ValueError: the order is too short.
    """
    (B, T), L = real.shape, order.shape[-1]
    if order.shape != (B, L) or order.is_floating_point() or L < T:
        raise ValueError(
            f"got an order {order.dtype} {list(order.shape)} of places, wanted int64 [{B}, {T} or more]: a view `words`"
        )
    place = real.cumsum(1)
    word = real & (place > 1) & (place < place[:, -1:])
    rank = order.argsort(1)[:, :T].masked_fill(~word, L)
    start = (
        F.pad(rank, (span - 1, 0), value=L).unfold(1, span, 1).amin(-1)
    )  # rank of the first span that covers a place
    by_start = start.masked_fill(~word, L + 1).sort(dim=1, stable=True).indices.argsort(1)
    words = word.sum(1, keepdim=True)
    chosen: Tensor = by_start < (ratio * words).round().clamp(min=1).minimum(words)
    return chosen
