"""Masks of spans: the expected share of tokens against its definition and against draws."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from mmssl.data.modalities.masks.audio import SpansConfig
from mmssl.data.modalities.masks.spans import draw_spans, expected_share


@pytest.mark.parametrize(
    ("tokens", "length", "spans"), [(50, 10, 3), (50, 10, 41), (20, 1, 5), (12, 4, 2), (10, 10, 1)]
)
def test_expected_share_is_one_minus_that_of_tokens_that_all_spans_miss(tokens: int, length: int, spans: int) -> None:
    starts = tokens - length + 1
    over = [sum(start <= place < start + length for start in range(starts)) for place in range(tokens)]
    expected = 1 - np.mean([comb(starts - n, spans) / comb(starts, spans) for n in over])
    assert expected_share(tokens, length, spans) == pytest.approx(expected, abs=1e-12)
    found = np.stack([draw_spans(tokens, length, spans, np.random.default_rng(seed)) for seed in range(2000)])
    assert found.mean() == pytest.approx(expected, abs=0.01)
    assert found.any(0).all()  # the last one too


def test_the_share_of_three_spans_of_ten_in_fifty_tokens() -> None:
    """Of ssl-golden-values-2.json: span_share_T50_M10_n3_transformers, and _fairseq, whose spans never reach the last token."""
    assert expected_share(50, 10, 3) == pytest.approx(0.48506566604127554, rel=1e-12)
    assert 49 * expected_share(49, 10, 3) / 50 == pytest.approx(0.482611336032389, rel=1e-12)


def test_the_number_of_spans_is_rounded_at_random() -> None:
    """0.65 x 50 / 10 = 3.25: three spans, or four in a quarter of the samples, and 25 tokens in each."""
    law = SpansConfig(tokens=50)
    mean = 0.75 * expected_share(50, 10, 3) + 0.25 * expected_share(50, 10, 4)
    masks = np.stack([law.choose((1, 50), np.random.default_rng(seed))[0] for seed in range(2000)])
    assert set(masks.sum(1)) == {round(50 * mean)} == {25}
    runs = (np.diff(masks.astype(int), prepend=0, axis=1) == 1).sum(1)
    assert 2.5 < runs.mean() < 5  # random tokens would make 12 runs
    alike = (masks[:, 1:] == masks[:, :-1]).mean()
    assert alike > 0.75  # of neighbouring tokens; random tokens would be alike in half of the cases


def test_short_sounds_have_the_least_number_of_spans() -> None:
    one, three = (SpansConfig(tokens=40, length=5, ratio=0.1, least=least) for least in (1, 3))
    assert one.choose((1, 40), np.random.default_rng(0)).sum() == 5
    assert three.choose((1, 40), np.random.default_rng(0)).sum() == round(40 * expected_share(40, 5, 3)) > 10
