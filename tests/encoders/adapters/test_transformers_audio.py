"""Audio towers of transformers: what its own feature extractors and models give for the same waves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.encoders.adapters.transformers_audio import HfAstConfig, HfAstEncoder, HfClapAudioConfig, HfClapAudioEncoder
from mmssl.encoders.spec_augment import SpecAugmentConfig
from tests.encoders.kinds import BERT, HF_AST, HF_CLAP, HF_VIT

AST = HF_AST | {"num_mel_bins": 64, "max_length": 104}
TOWER = HF_CLAP | {"num_mel_bins": 64, "spec_size": 256, "patch_size": 8, "patch_stride": [8, 8]}
"""48 kHz and ten seconds, as published, but of two thin layers."""


def waves(rate: int, seconds: float, count: int = 2) -> Tensor:
    noise = torch.randn(count, 1, round(rate * seconds), generator=torch.Generator().manual_seed(0))
    return noise * torch.linspace(0.001, 0.2, noise.shape[2])


def ast(path: Path, **changes: Any) -> HfAstEncoder:
    return HfAstConfig.model_validate_json(json.dumps({"path": str(path), **changes})).build().eval()


def clap(path: Path, **changes: Any) -> HfClapAudioEncoder:
    return HfClapAudioConfig.model_validate_json(json.dumps({"path": str(path), **changes})).build().eval()


def saved_ast(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.ASTConfig(**{name: value for name, value in AST.items() if name != "model_type"})
    model = transformers.ASTForAudioClassification(config).eval()
    model.save_pretrained(folder)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=104, mean=-5.5, std=3.25)
    extractor.save_pretrained(folder)
    return model.audio_spectrogram_transformer, extractor


def saved_clap(folder: Path, *, fusion: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tower = {name: value for name, value in TOWER.items() if name != "model_type"} | {"enable_fusion": fusion}
    text = {name: value for name, value in BERT.items() if name != "model_type"}
    model = transformers.ClapModel(
        transformers.ClapConfig(audio_config=tower, text_config=text, projection_dim=24)
    ).eval()
    model.save_pretrained(folder)
    truncation = "fusion" if fusion else "rand_trunc"
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation=truncation)
    extractor.save_pretrained(folder)
    return model, extractor


@pytest.mark.parametrize("seconds", [0.4, 1.0, 3.0])
def test_ast_gives_what_transformers_gives(tmp_path: Path, seconds: float) -> None:
    model, extractor = saved_ast(tmp_path)
    x = waves(16_000, seconds)
    out = model(extractor([wave[0].numpy() for wave in x], sampling_rate=16_000, return_tensors="pt").input_values)
    encoder = ast(tmp_path)
    features = encoder(x)
    torch.testing.assert_close(features.pooled, out.pooler_output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.tokens, out.last_hidden_state[:, 2:], atol=1e-4, rtol=1e-4)
    assert features.grid == encoder.grid == (8, 13)
    torch.testing.assert_close(ast(tmp_path, pool="cls")(x).pooled, out.last_hidden_state[:, 0], atol=1e-4, rtol=1e-4)
    mean = out.last_hidden_state[:, 2:].mean(1)
    torch.testing.assert_close(ast(tmp_path, pool="mean")(x).pooled, mean, atol=1e-4, rtol=1e-4)


def test_ast_takes_its_numbers_from_the_folder_or_the_recipe(tmp_path: Path) -> None:
    saved_ast(tmp_path)
    assert ast(tmp_path).front_end.settings.std == 6.5
    config = HfAstConfig(path=tmp_path)
    assert config.rate == 16_000
    given = {"kind": "kaldi", "rate": 8000, "mels": 64, "frames": 104}
    assert ast(tmp_path, front_end=given).front_end.settings.mean == 0.0
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | {"do_normalize": False}))
    assert ast(tmp_path).front_end.settings.std == 1.0
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="set front_end to that of the model's training"):
        ast(tmp_path)
    scratch = HfAstConfig(config=AST)
    assert scratch.rate == 16_000
    assert scratch.build().front_end.settings.mean == pytest.approx(-4.2677393)


@pytest.mark.parametrize("seconds", [2.0, 10.0, 12.5])
def test_clap_without_fusion_gives_what_transformers_gives(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, extractor = saved_clap(tmp_path, fusion=False)
    x = waves(48_000, seconds)
    monkeypatch.setattr(
        np.random, "randint", lambda low, high: (high - 1) // 2
    )  # the middle, where it would be anywhere
    features = extractor([wave[0].numpy() for wave in x], sampling_rate=48_000, return_tensors="pt").input_features
    out = model.audio_model(features)
    made = clap(tmp_path)(x)
    torch.testing.assert_close(made.pooled, out.pooler_output, atol=1e-4, rtol=1e-3)
    assert made.grid == out.last_hidden_state.shape[2:] == (4, 64)
    torch.testing.assert_close(made.tokens.mean(1), made.pooled)
    projected = clap(tmp_path, pool="projection")(x)
    torch.testing.assert_close(projected.pooled, model.audio_projection(out.pooler_output), atol=1e-4, rtol=1e-3)
    assert projected.tokens is None


@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_fused_clap_gives_short_sounds_what_transformers_gives_those_it_did_not_pick(
    tmp_path: Path, seconds: float
) -> None:
    model, extractor = saved_clap(tmp_path, fusion=True)
    x = waves(48_000, seconds)
    inputs = extractor([wave[0].numpy() for wave in x], sampling_rate=48_000, return_tensors="pt")
    assert inputs.is_longer.sum() == 1, "a random one of the short is called longer"
    plain = model.audio_model(inputs.input_features, is_longer=torch.zeros(2, 1, dtype=torch.bool))
    made = clap(tmp_path)(x)
    torch.testing.assert_close(made.pooled, plain.pooler_output, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(model.audio_model(**inputs).pooler_output, plain.pooler_output, atol=1e-3)


def test_fused_clap_fuses_long_sounds_and_never_the_same_differently(tmp_path: Path) -> None:
    model, extractor = saved_clap(tmp_path, fusion=True)
    x = waves(48_000, 13.0, 3)
    encoder = clap(tmp_path, seconds=13.0)
    made = encoder(x)
    again, alone = encoder(x), encoder(x[1:2])
    assert torch.equal(made.pooled, again.pooled)
    torch.testing.assert_close(alone.pooled, made.pooled[1:2], atol=1e-6, rtol=1e-5)
    theirs = [extractor(x[0, 0].numpy(), sampling_rate=48_000, return_tensors="pt") for _ in range(2)]
    first, second = (model.audio_model(**inputs).pooler_output for inputs in theirs)
    assert not torch.equal(first, second), "theirs draws its chunks in inference too"
    mel = encoder.prepare(x[:1])
    torch.testing.assert_close(mel[:, 0], theirs[0].input_features[:, 0], atol=2e-3, rtol=1e-4)
    fused = model.audio_model(mel, is_longer=torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(made.pooled[:1], fused.pooler_output, atol=1e-5, rtol=1e-4)


def test_parts_are_hidden_in_training_only(tmp_path: Path) -> None:
    saved_ast(tmp_path / "ast")
    saved_clap(tmp_path / "clap", fusion=True)
    for make, folder, rate in ((ast, "ast", 16_000), (clap, "clap", 48_000)):
        x = waves(rate, 1.0)
        plain, augmented = make(tmp_path / folder), make(tmp_path / folder, spec_augment={"filter_width": 20})
        assert torch.equal(augmented.prepare(x), plain.prepare(x))
        assert torch.equal(augmented(x).pooled, plain(x).pooled)
        assert not torch.allclose(augmented.train()(x).pooled, plain.train()(x).pooled, atol=1e-3)
    scratch = HfAstConfig.model_validate_json(json.dumps({"config": AST, "spec_augment": {}}))
    assert scratch.spectrogram().spec_augment == SpecAugmentConfig()


def test_layers_that_fuse_are_trained_only_where_sounds_are_long(tmp_path: Path) -> None:
    saved_clap(tmp_path, fusion=True)

    def fusing(encoder: HfClapAudioEncoder) -> set[bool]:
        return {p.requires_grad for name, p in encoder.named_parameters() if "fusion_model" in name}

    assert fusing(clap(tmp_path)) == {False}
    assert fusing(clap(tmp_path, seconds=12.0)) == {True}


def test_a_bare_tower_has_no_projection(tmp_path: Path) -> None:
    model, extractor = saved_clap(tmp_path, fusion=False)
    model.audio_model.save_pretrained(tmp_path / "bare")
    extractor.save_pretrained(tmp_path / "bare")
    x = waves(48_000, 2.0)
    torch.testing.assert_close(clap(tmp_path / "bare")(x).pooled, clap(tmp_path)(x).pooled)
    with pytest.raises(ValueError, match="has no projection; use pooler"):
        clap(tmp_path / "bare", pool="projection")


def test_weights_of_the_tower_must_be_there(tmp_path: Path) -> None:
    saved_clap(tmp_path, fusion=False)
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio_config"]["depths"] = [1, 2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no weights for"):
        clap(tmp_path)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (HfAstConfig, {"config": HF_VIT}, "got a vit model, wanted model_type audio-spectrogram-transformer"),
        (HfAstConfig, {"config": AST, "front_end": {"kind": "ast"}}, "got a front_end of 128 mels and 1024 frames"),
        (HfAstConfig, {"config": AST, "path": "somewhere"}, "wanted exactly one of path"),
        (HfAstConfig, {"config": AST, "front_end": {"kind": "ast"}, "spec_augment": {}}, "set front_end.spec_augment"),
        (
            HfAstConfig,
            {"config": AST, "front_end": {"kind": "ast", "channel": "both"}},
            "the model has one input plane",
        ),
        (
            HfClapAudioConfig,
            {"config": TOWER, "front_end": {"kind": "clap_htsat_unfused", "mel": {"kind": "mel", "channel": "both"}}},
            "planes of CLAP's towers are chunks of time",
        ),
        (HfClapAudioConfig, {"config": HF_VIT}, "got a vit model, wanted model_type clap"),
        (
            HfClapAudioConfig,
            {"config": TOWER, "front_end": {"kind": "clap_htsat_fused"}},
            "got front_end clap_htsat_fused for a model with enable_fusion False",
        ),
        (HfClapAudioConfig, {"config": TOWER, "checkpointing": True}, "running statistics twice a step"),
    ],
)
def test_errors_say_what_to_do(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make.model_validate_json(json.dumps(settings)).build()
