from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.core.positions import sincos_positions
from mmssl.datasets import digit_scenes
from mmssl.encoders.audio_transformer import AudioTransformer, AudioTransformerConfig
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe
from mmssl.recipe.validate import validate_text

FRONT_END: dict[str, Any] = {
    "kind": "mel",
    "rate": 8000,
    "window": 256,
    "hop": 80,
    "mels": 32,
    "mean": -8.0,
    "std": 4.0,
}


def config(**changes: Any) -> AudioTransformerConfig:
    values = {"front_end": FRONT_END, "seconds": 0.5, "patch_size": [8, 8], "width": 32, "depth": 2, "heads": 4}
    return AudioTransformerConfig.model_validate_json(json.dumps(values | changes))


def build(**changes: Any) -> AudioTransformer:
    torch.manual_seed(0)
    return config(**changes).build().eval()


def waves(count: int, samples: int = 4000, channels: int = 1) -> Tensor:
    return 0.1 * torch.randn(count, channels, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, (4, 6)),  # 32 filters, 51 frames
        ({"stride": [8, 4]}, (4, 11)),
        ({"patch_size": [32, 4]}, (1, 12)),
        ({"patch_size": [16, 16], "stride": [10, 10]}, (2, 4)),
        (
            {"front_end": {"kind": "ast"}, "seconds": 10.0, "patch_size": [16, 16], "stride": [10, 10]},
            (12, 101),
        ),  # AST's
        ({"front_end": {"kind": "cav_mae"}, "seconds": 10.0, "patch_size": [16, 16]}, (8, 64)),
        ({"front_end": {"kind": "imagebind"}, "seconds": 2.0, "patch_size": [16, 16], "stride": [10, 10]}, (12, 19)),
    ],
)
def test_grids_are_those_of_the_papers(changes: dict[str, Any], grid: tuple[int, int]) -> None:
    encoder = build(**changes)
    assert encoder.grid == grid
    settings = config(**changes).front_end.settings
    with torch.no_grad():
        features = encoder(waves(1, round(settings.rate * config(**changes).seconds)))
    assert features.grid == grid
    assert features.tokens.shape == (1, grid[0] * grid[1], 32)


def test_tokens_stand_in_reading_order_filters_first() -> None:
    """A change of the last frames touches the last columns of patch embeddings, in every row and nowhere else."""
    encoder = build(class_token=False, pool="mean", depth=1)
    x = waves(1)
    other = x.clone()
    other[..., -200:] += 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(3))
    embedded = [encoder.patch_embedding(encoder.prepare(wave)).flatten(2)[0] for wave in (x, other)]
    changed = (embedded[0] - embedded[1]).abs().amax(0) > 1e-6
    columns = changed.view(4, 6)
    assert columns[:, -1].all()
    assert not columns[:, :-1].any()


def test_other_lengths_work_by_resampled_positions() -> None:
    encoder = build()
    with torch.no_grad():
        assert encoder(waves(2, 8000)).grid == (4, 12)
        assert encoder(waves(2, 1000)).grid == (4, 1)
    with pytest.raises(ValueError, match=r"wanted at least one patch of \(8, 8\)"):
        encoder(waves(2, 400))


def test_fixed_positions_are_sines_and_cosines() -> None:
    encoder = build(positions="sincos")
    assert not encoder.positional_embedding.requires_grad
    assert torch.equal(encoder.positional_embedding[1:], sincos_positions((4, 6), encoder.width))
    assert not encoder.positional_embedding[0].any()  # the class token has no place
    encoder(waves(2)).pooled.sum().backward()  # type: ignore[no-untyped-call]


def test_weights_of_another_length_are_resampled(tmp_path: Path) -> None:
    short = build()
    safetensors.torch.save_file(short.state_dict(), tmp_path / "short.safetensors")
    long = build(seconds=1.0, weights=str(tmp_path / "short.safetensors"))
    assert long.grid == (4, 12)
    assert torch.equal(long.blocks[0].mlp.up.weight, short.blocks[0].mlp.up.weight)
    assert torch.equal(long.positional_embedding[0], short.positional_embedding[0])
    assert long.positional_embedding.shape == (49, 32)
    same = build(weights=str(tmp_path / "short.safetensors"))
    assert torch.equal(same(waves(2)).pooled, short(waves(2)).pooled)
    with pytest.raises(CheckpointError, match="of another shape"):
        build(width=64, weights=str(tmp_path / "short.safetensors"))


def test_stereo_is_heard_as_its_mean() -> None:
    encoder, x = build(), waves(2, channels=2)
    torch.testing.assert_close(encoder(x).pooled, encoder(x.mean(1, keepdim=True)).pooled, atol=1e-5, rtol=1e-5)
    assert encoder.prepare(x).shape == (2, 1, 32, 51)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width: got 32, wanted a multiple of heads 5"),
        ({"class_token": False}, "use pool: mean"),
        ({"patch_size": [8, 0]}, "greater than 0"),
    ],
)
def test_configs_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_sounds_too_short_for_a_patch_are_refused_at_build() -> None:
    with pytest.raises(ValueError, match="give longer sounds or smaller patches"):
        build(seconds=0.05)


def recipe(shards: Path, folder: Path) -> dict[str, Any]:
    values = find_recipe("audio_text/clap_small").model_dump(mode="json")
    values["encoders"]["audio"] |= {"width": 64, "depth": 2, "heads": 2}
    values["encoders"]["text"] |= {"width": 64, "heads": 2}
    values |= {"batch_size": 32, "duration": "30 steps", "precision": "fp32", "device": "cpu", "output": str(folder)}
    values["log"] |= {"trackers": []}
    values["data"] |= {"shards": [str(shards)]}
    values["optimizer"] |= {"lr": 2e-3}
    return values


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        ({}, 8000),
        ({"kind": "audio_resnet", "front_end": FRONT_END, "seconds": 1.0}, 8000),
        ({"kind": "audio_resnet", "front_end": {"kind": "clap_htsat_unfused"}, "seconds": 1.0}, 48_000),
        ({"kind": "hf_ast", "config": {"model_type": "audio-spectrogram-transformer"}}, 16_000),
        ({"kind": "hf_clap_audio", "config": {"model_type": "clap_audio_model"}}, 48_000),
    ],
)
def test_the_rate_of_a_modality_must_be_the_front_ends(encoder: dict[str, Any], wanted: int, tmp_path: Path) -> None:
    values = recipe(tmp_path, tmp_path)
    if encoder:
        values["encoders"]["audio"] = encoder
    values["modalities"]["audio"]["rate"] = 22_050
    with pytest.raises(Exception, match=rf"modalities.audio.rate: got 22050, and encoders.audio takes {wanted}: "):
        validate_text(Recipe, json.dumps(values), "recipe")
    values["modalities"]["audio"]["rate"] = wanted
    built = validate_text(Recipe, json.dumps(values), "recipe")
    assert validate_text(Recipe, built.to_yaml(), "recipe") == built


def test_an_encoder_with_two_planes_hears_the_side(tmp_path: Path) -> None:
    encoder = build(front_end={**FRONT_END, "channel": "both"}).eval()
    x = torch.cat([0.1 * torch.randn(2, 1, 4000), 0.01 * torch.randn(2, 1, 4000)], dim=1)
    assert encoder.prepare(x).shape[:2] == (2, 2)
    assert not torch.allclose(encoder(x).pooled, encoder(x.flip(1)).pooled, atol=1e-3)
    torch.testing.assert_close(build().eval()(x).pooled, build().eval()(x.flip(1)).pooled)
    values = recipe(tmp_path, tmp_path)
    values["encoders"]["audio"]["front_end"]["channel"] = "both"
    values["modalities"]["audio"]["channels"] = "mono"
    with pytest.raises(
        Exception, match=r"audio.channels: got 1, and encoders.audio takes 2: of sounds, set channels: stereo"
    ):
        validate_text(Recipe, json.dumps(values), "recipe")
    values["modalities"]["audio"]["channels"] = "stereo"
    validate_text(Recipe, json.dumps(values), "recipe")


def test_sounds_and_captions_find_each_other(tmp_path: Path) -> None:
    """30 steps of the shipped recipe, smaller, on key tones and their captions."""
    digit_scenes.write(tmp_path / "scenes", train=128, validation=0, test=0, shards=2, size=16)
    built = validate_text(Recipe, json.dumps(recipe(tmp_path / "scenes/train", tmp_path)), "recipe")
    launch = built.training.launch()
    run = built.build(launch)
    try:
        run.state.learner.train()
        losses = []
        for group in run.state.optimizer.param_groups:
            group["lr"] = 2e-3
        for _, batch in zip(range(30), run.state.stream, strict=False):
            losses.append(run.step(run.state, batch).scalars()["loss"])
            run.state.step += 1
    finally:
        run.state.stream.close()
        launch.close()
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.75 * first, losses
