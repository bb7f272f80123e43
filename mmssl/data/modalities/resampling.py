"""Resampling of sounds: ratios of rates, and which stored samples a window needs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from mmssl.data.modalities.arrays import to_tensor

_FILTERS = 600_000  # approximate maximum size of a resampling filter bank: exact for all common ratios of rates


def resampling_ratio(rate: int, stored: int) -> Fraction:
    """Resampling ratio `rate` / `stored`, rounded to 0.1 % if its filter bank would be huge (such as for 44,101 Hz).

    torchaudio's bank has numerator x denominator entries, which can take gigabytes without a common factor.
    """
    exact = Fraction(rate, stored)
    ratio, limit = exact, 1024
    while ratio.numerator * ratio.denominator > _FILTERS:
        ratio, limit = exact.limit_denominator(limit), limit // 2
    return ratio


def source_span(first: int, count: int, ratio: Fraction, frames: int) -> tuple[int, int, int]:
    """Stored samples [start, stop) for output samples [first, first + count), and the number of extra output samples before them.

    The span starts at a multiple of the ratio's denominator, where the filter bank repeats, and extends by the filter's width on
    both sides.
    """
    new, old = ratio.numerator, ratio.denominator
    if ratio == 1:
        return first, first + count, 0
    reach = math.ceil(6 * old / (0.99 * min(new, old))) + 1  # torchaudio's filter: 6 zero crossings, roll-off 0.99
    block = max(0, first // new - math.ceil(reach / old))
    stop = min(frames, math.ceil((first + count) * old / new) + reach + old)
    return block * old, stop, first - block * new


def resample(wave: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Resample [channels, samples] by torchaudio's windowed sinc filter."""
    from torchaudio import functional

    if wave.shape[1] == 0:
        return wave
    made: np.ndarray = functional.resample(to_tensor(wave), ratio.denominator, ratio.numerator).numpy()
    return made
