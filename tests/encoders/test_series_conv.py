"""The dilated convolutions of TS2Vec: their reach, their masks, and series of any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmssl.encoders.series_conv import SeriesConv, SeriesConvConfig
from tests.encoders.kinds import differ, stir


def build(**changes: Any) -> SeriesConv:
    torch.manual_seed(0)
    settings = {"channels": 2, "rate": 50, "seconds": 2.0, "hidden": 8, "depth": 2, "width": 12, "dropout": 0.0}
    encoder = SeriesConvConfig(**(settings | changes)).build()
    stir(encoder)
    return encoder.eval()


def series(samples: int = 100, seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 2, samples, generator=torch.Generator().manual_seed(seed))


def test_a_token_reaches_as_far_as_the_dilations() -> None:
    """Two convolutions in each of the blocks of dilation 1, 2 and 4: 14 tokens to each side."""
    encoder, x = build(), series()
    other = x.clone()
    other[:, :, 50] += 5
    moved = (encoder(other).tokens - encoder(x).tokens).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(36, 65))


def test_its_layers_are_those_of_the_paper() -> None:
    encoder = SeriesConvConfig(channels=1, rate=100, seconds=1.0).build()
    blocks, last = 10 * 2 * (64 * 64 * 3 + 64), (64 * 320 * 3 + 320) + (320 * 320 * 3 + 320) + (64 * 320 + 320)
    assert sum(p.numel() for p in encoder.parameters()) == 128 + blocks + last
    assert encoder(torch.zeros(1, 1, 100)).tokens.shape == (1, 100, 320)


def test_masked_times_are_not_seen() -> None:
    encoder, x = build(stride=5), series()
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[:, 4:7] = True
    other = x.clone()
    other[:, :, 20:35] *= -3
    zero = torch.zeros(())
    assert torch.equal(encoder(other, replace=(mask, zero)).tokens, encoder(x, replace=(mask, zero)).tokens)
    assert differ(encoder(other).tokens, encoder(x).tokens)
    assert differ(encoder(x, replace=(mask, torch.ones(8))).tokens, encoder(x, replace=(mask, zero)).tokens)


def test_series_of_any_length_have_their_tokens() -> None:
    encoder = build(stride=3)
    assert encoder.grid == (33,)
    for samples, tokens in ((100, 33), (99, 33), (31, 10)):
        features = encoder(series(samples))
        assert features.grid == (tokens,)
        assert torch.equal(features.pooled, features.tokens.amax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [1.0, 2.0, 3.0]}, "mean: got 3 numbers"),
        ({"std": [0.0]}, "above 0"),
        ({"stride": 200}, "got 100 samples"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
