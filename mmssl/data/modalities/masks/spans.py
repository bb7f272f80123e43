"""Masks of spans of consecutive tokens (wav2vec 2.0, HuBERT, data2vec)."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
from pydantic import Field

from mmssl.data.modalities.masks.law import GridShape, MaskLaw, MaskRatio, check_masked_count, set_count


class SpansLaw(MaskLaw):
    """Mask random spans of a sequence of tokens: wav2vec 2.0 (arXiv:2006.11477), HuBERT and data2vec for sounds.

    Spans may overlap. Then random tokens are added or removed, so that the count is the expected one of the spans, in each sample.
    The last token can be masked, other than in fairseq's code.

    Attributes:
        ratio: length of all spans together as a share of the tokens; as they overlap, fewer tokens are masked: 0.65 masks 48 % of
            long sequences. wav2vec 2.0 and data2vec: 0.65, HuBERT: 0.8.
        length: tokens of a span.
        least: smallest number of spans. wav2vec 2.0 and HuBERT: 2, data2vec: 1.
    """

    kind: Literal["spans"] = "spans"
    ratio: MaskRatio = 0.65
    length: int = Field(default=10, ge=1)
    least: int = Field(default=2, ge=1)

    def check(self, shape: GridShape) -> None:
        """Refuse a sequence that is too short."""
        tokens = shape[0] * shape[1]
        if self.least > tokens - self.length + 1:
            raise ValueError(
                f"got {self.least} spans (`least`) of length {self.length} for {tokens} tokens, wanted places for all of them: "
                "lower length"
            )
        check_masked_count(self._count(tokens), tokens, f"ratio {self.ratio:g} and {self.least} spans of {self.length}")

    def choose(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        """Draw the starts of the spans, then random tokens up to the count."""
        tokens = shape[0] * shape[1]
        fewer, more, chance = self._numbers(tokens)
        mask = draw_spans(tokens, self.length, more if rng.random() < chance else fewer, rng)
        set_count(mask, self._count(tokens), rng)
        return mask.reshape(shape)

    def _numbers(self, tokens: int) -> tuple[int, int, float]:
        """Two numbers of spans, and the probability of the second."""
        wanted = self.ratio * tokens / self.length
        fewer, more = (min(max(self.least, math.floor(wanted) + i), tokens - self.length + 1) for i in range(2))
        return fewer, more, wanted % 1

    def _count(self, tokens: int) -> int:
        fewer, more, chance = self._numbers(tokens)
        shares = expected_share(tokens, self.length, fewer), expected_share(tokens, self.length, more)
        return round(tokens * ((1 - chance) * shares[0] + chance * shares[1]))


def draw_spans(tokens: int, length: int, spans: int, rng: np.random.Generator) -> np.ndarray:
    """Draw spans at different starts, equally likely, bool [tokens]."""
    mask = np.zeros(tokens, dtype=bool)
    starts = rng.choice(tokens - length + 1, spans, replace=False)
    mask[(starts[:, None] + np.arange(length)).reshape(-1)] = True
    return mask


@cache
def expected_share(tokens: int, length: int, spans: int) -> float:
    """Expected share of tokens under spans at different starts, equally likely: 0.4851 for 3 spans of 10 in 50 tokens."""
    starts = tokens - length + 1
    place = np.arange(tokens)
    over = np.minimum(place, starts - 1) - np.maximum(place - length + 1, 0) + 1  # starts of spans over each token
    drawn = np.arange(spans)
    missed = np.prod((starts - over[:, None] - drawn).clip(0) / (starts - drawn), axis=1)
    return float(1 - missed.mean())
