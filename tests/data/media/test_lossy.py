"""Lossy codecs: rates that they have, and sounds that come back in time and as long as they were."""

from __future__ import annotations

import numpy as np
import pytest

from mmssl.data.media.lossy import CODECS, coding_rate, through_codec


def test_a_sound_is_coded_at_the_next_rate_and_few_bits_at_a_lower_one() -> None:
    assert coding_rate("mp3", 44_100, 64_000) == 44_100
    assert coding_rate("mp3", 44_100, 8_000) == coding_rate("aac", 48_000, 16_000) == 24_000
    assert coding_rate("opus", 44_100, 64_000) == 48_000
    assert coding_rate("opus", 22_050, 6_000) == 24_000
    assert coding_rate("aac", 96_000, 64_000) == 48_000


@pytest.mark.parametrize("codec", CODECS)
def test_a_burst_stays_where_it_was(codec: str) -> None:
    times = np.arange(8_000) / 16_000
    burst = 0.5 * np.sin(2 * np.pi * 700 * times) * ((times > 0.2) & (times < 0.3))
    heard = through_codec(burst, codec, 16_000, 32_000)
    assert heard.dtype == np.float32
    assert len(heard) == len(burst)
    middle = float((np.square(heard) * times).sum() / np.square(heard).sum())
    assert middle == pytest.approx(0.25, abs=0.002)
    assert float(np.square(heard).sum() / np.square(burst).sum()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [1, 100, 5_000])
def test_any_length_comes_back(codec: str, samples: int) -> None:
    assert len(through_codec(np.full(samples, 0.1), codec, 8_000, 16_000)) == samples
