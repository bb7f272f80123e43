"""The transformer of series: tokens over time, exact masks without overlap, and other lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from mmssl.data.modalities.series import SeriesConfig
from mmssl.encoders.series_transformer import SeriesTransformer, SeriesTransformerConfig
from mmssl.recipe.checks import check_keys
from tests.encoders.kinds import differ, stir


def config(**changes: Any) -> SeriesTransformerConfig:
    settings = {"channels": 2, "rate": 50, "seconds": 2.0, "strides": [5, 2], "width": 32, "depth": 2, "heads": 4}
    return SeriesTransformerConfig(**(settings | changes))


def build(**changes: Any) -> SeriesTransformer:
    torch.manual_seed(0)
    encoder = config(**changes).build()
    stir(encoder)
    return encoder.eval()


def series(samples: int = 100, seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 2, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strides", [[10], [5, 2], [2, 5], [1, 10], [2, 5, 1]])
@pytest.mark.parametrize(
    ("overlap", "samples", "tokens"), [(True, 95, 10), (False, 95, 9), (True, 100, 10), (False, 100, 10)]
)
def test_tokens_are_counted_as_the_stem_makes_them(
    strides: list[int], overlap: bool, samples: int, tokens: int
) -> None:
    encoder = build(strides=strides, overlap=overlap, seconds=samples / 50)
    assert encoder.grid == (tokens,)
    features = encoder(series(samples))
    assert features.grid == (tokens,)
    assert features.tokens is not None
    assert features.tokens.shape == (3, tokens, 32)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_token_sees_its_own_samples_and_with_overlap_its_neighbours(overlap: bool) -> None:
    """Changed: the samples of token 4, 40 to 49."""
    encoder = build(overlap=overlap)
    x = series()
    other = x.clone()
    other[:, :, 40:50] += 1
    moved = (encoder.stem(other) - encoder.stem(x)).abs().amax((0, 1)) > 1e-6
    assert moved.nonzero().flatten().tolist() == ([4, 5] if overlap else [4])


def test_dropped_and_replaced_tokens_have_no_influence_without_overlap() -> None:
    encoder, x = build(overlap=False), series()
    keep = torch.tensor([[0, 4], [9, 2], [3, 5]])
    seen = torch.zeros(3, 10, dtype=torch.bool).scatter(1, keep, True)
    other = torch.where(seen.repeat_interleave(10, 1)[:, None], x, -x)
    kept = encoder(x, keep=keep)
    assert kept.grid is None
    assert torch.equal(encoder(other, keep=keep).pooled, kept.pooled)
    assert differ(encoder(-x, keep=keep).pooled, kept.pooled)
    value = torch.randn(32, generator=torch.Generator().manual_seed(3))
    replaced = encoder(x, replace=(~seen, value))
    assert torch.equal(encoder(other, replace=(~seen, value)).pooled, replaced.pooled)
    assert differ(encoder(x, replace=(~seen, -value)).pooled, replaced.pooled)
    assert differ(encoder(x).pooled, replaced.pooled)
    everything = torch.arange(10).expand(3, -1)
    torch.testing.assert_close(encoder(x, keep=everything).tokens, encoder(x).tokens)


def test_order_in_time_matters() -> None:
    encoder, x = build(pool="mean", overlap=False), series()
    swapped = torch.cat([x[:, :, 50:], x[:, :, :50]], 2)
    assert differ(encoder(swapped).pooled, encoder(x).pooled)


def test_series_are_normalised_in_their_units() -> None:
    encoder = build(mean=[300.0, 0.0], std=[10.0, 2.0])
    x = torch.tensor([310.0, -4.0])[None, :, None].expand(1, 2, 100)
    assert encoder.prepare(x)[0, :, 0].tolist() == [1.0, -2.0]
    assert build(mean=[1.0], std=[2.0]).prepare(torch.ones(1, 2, 9) * 3).unique().tolist() == [1.0]


def test_weights_of_another_length_are_resampled(tmp_path: Path) -> None:
    short = build()
    safetensors.torch.save_file(short.state_dict(), tmp_path / "short.safetensors")
    long = config(seconds=4.0, weights=str(tmp_path / "short.safetensors")).build()
    assert long.grid == (20,)
    assert long.positional_embedding.shape == (21, 32)
    torch.testing.assert_close(long.positional_embedding[0], short.positional_embedding[0])
    torch.testing.assert_close(
        long.positional_embedding[1:].mean(0), short.positional_embedding[1:].mean(0), atol=0.02, rtol=0
    )
    assert short(series(200)).grid == (20,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False}, "wanted a class token to pool"),
        ({"mean": [0.0, 0.0, 0.0]}, "mean: got 3 numbers, wanted one, or one for each of 2 channels"),
        ({"std": [0.0]}, "wanted numbers above 0"),
        ({"seconds": 0.1, "overlap": False}, "got series of 5 samples, wanted at least 10"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=message):
        config(**changes).build()


def test_a_recipe_names_rate_and_channels_that_differ() -> None:
    modality = SeriesConfig(axes=["time", "channel"], rate=100, channels=3, seconds=2.0)
    with pytest.raises(ValueError, match=r"modalities\.ecg\.rate: got 100.*takes 50.*\n.*channels: got 3, .* takes 2"):
        check_keys({"ecg": modality}, {"ecg": config()}, {})
