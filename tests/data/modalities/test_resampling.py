"""Ratios of resampling: exact where they can be, and the spans of stored samples that windows need."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mmssl.data.modalities.resampling import resample, resampling_ratio, source_span

USUAL = [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000]


def test_ratios_are_exact_for_usual_rates_and_bounded_for_all() -> None:
    for rate in USUAL:
        for stored in USUAL:
            assert resampling_ratio(rate, stored) == Fraction(rate, stored)
        for stored in (1_000, 1_009, 9_973, 22_254, 44_101, 99_991, 191_999):
            ratio = resampling_ratio(rate, stored)
            assert ratio.numerator * ratio.denominator <= 600_000  # exact ones have up to 2e10, of 8 bytes each
            assert float(ratio) * stored / rate == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("ratio", [Fraction(1, 3), Fraction(160, 441), Fraction(3, 1)])
def test_the_span_of_a_window_is_enough_for_it(ratio: Fraction) -> None:
    wave = np.random.default_rng(0).standard_normal((1, 9000)).astype(np.float32)
    whole = resample(wave, ratio)
    for first in (0, 500, 2000):
        start, stop, skip = source_span(first, 300, ratio, 9000)
        assert stop - start < 300 / ratio + 2000
        got = resample(np.ascontiguousarray(wave[:, start:stop]), ratio)[:, skip : skip + 300]
        np.testing.assert_allclose(got, whole[:, first : first + 300], atol=1e-6)
