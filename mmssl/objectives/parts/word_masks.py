"""Masks of words of a text, and words in place of others, from a random order of its places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.config import Config
from mmssl.objectives.parts.presence import content_hash, mixed_bits


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


@torch.no_grad()
def real_ids(ids: Tensor) -> Tensor:
    """Mask of the tokens of each text [B, T] that are no padding, bool: a text ends at its largest id, as in CLIP."""
    return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(1, keepdim=True)


@torch.no_grad()
def corrupt_words(ids: Tensor, order: Tensor, chosen: Tensor, random: float, kept: float) -> tuple[Tensor, Tensor]:
    """Of chosen words, replace some by random words, keep some, and name the others, which are to be hidden (BERT).

    Devlin et al. 2019 (arXiv:1810.04805), section 3.1: 80 % hidden, 10 % random, 10 % as they are. What becomes of a word is a hash
    of the text's random order and of its place, so that it needs no other random numbers. Random words are neither the start nor
    the end of texts.

    Args:
        ids: [B, T] int64; the first id marks the start, and the largest the end.
        order: [B, L] int64, a permutation of places: the view `words`.
        chosen: [B, T] bool, words that are predicted.
        random: share of them that become random words.
        kept: share of them that stay.

    Returns:
        Ids [B, T], and the mask [B, T] of words that are to be hidden.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    noise = mixed_bits(content_hash(order + 1)[:, None] + mixed_bits(places + 1))
    share = (noise & 0xFFFFFF) / 2.0**24
    start, end = ids[:, :1], ids.amax(1, keepdim=True)
    word = (noise >> 24 & 0xFFFFFFFF) % (end - 1).clamp(min=1)
    word = word + (word >= start)  # as likely as any other, without the start
    changed = torch.where(chosen & (share < random), word, ids)
    return changed, chosen & (share >= random + kept)
