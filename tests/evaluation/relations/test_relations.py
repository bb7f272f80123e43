"""The probes of relations, with models whose answers are known: they measure what they are to measure, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig, TextModality
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.datasets import moving_scenes
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.evaluation.relations.offset import OffsetConfig
from mmssl.evaluation.relations.sides import SidesConfig
from tests.data.make import write
from tests.evaluation.world import Formula, configured, model, png

FRAMES = 20


def side_of_picture(x: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> ink in the left and in the right half, over all frames."""
    x = x.float()
    ink = (x - x.flatten(3).median(3).values[..., None, None]).abs().sum((1, 2, 3))
    left, right = ink.tensor_split(2, 1)
    return F.normalize(torch.stack([left.sum(1), right.sum(1)], 1), dim=1) ** 4


def side_of_sound(x: Tensor) -> Tensor:
    return x.double().square().sum(2).float()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    moving_scenes.write(folder, train=0, validation=0, test=24, shards=1, size=32, seconds=3.0)
    return [str(folder / "test")]


def modalities(**audio: Any) -> dict[str, Modality]:
    sound = {"extensions": ["mp4"], "rate": 8000, "seconds": 2.0, "pad": "zero", **audio}
    return {
        "video": configured(VideoConfig, size=32, frames=FRAMES, seconds=2.0).build("video"),
        "audio": configured(AudioConfig, **sound).build("audio"),
        "text": configured(TextConfig, tokenizer={"kind": "clip", "context_length": 16}).build("text"),
        "image": configured(ImageConfig, size=32).build("image"),
    }


def test_a_model_that_hears_sides_tells_them_and_one_that_mirrors_them_fails(clips: list[str]) -> None:
    probe = configured(SidesConfig, pair=["video", "audio"], shards=clips, batch_size=7).build(modalities())
    good = dict(probe.evaluate(model(2, video=side_of_picture, audio=side_of_sound)))
    bad = dict(probe.evaluate(model(2, video=side_of_picture, audio=lambda x: side_of_sound(x).flip(1))))
    deaf = dict(probe.evaluate(model(2, video=side_of_picture, audio=lambda x: torch.ones(len(x), 2))))
    assert good["acc"] > 0.8
    assert bad["acc"] == pytest.approx(1 - good["acc"])
    assert (good["tie_rate"], deaf["acc"], deaf["tie_rate"]) == (0, 0.5, 1)
    assert good["n"] + good["n_excluded"] == 24
    assert good["n_excluded"] > 0, "sounds that are in the middle have no side"
    assert good["acc_ci95_low"] < good["acc"] <= good["acc_ci95_high"] + 1e-9


@pytest.mark.parametrize(("channel", "told"), [("mean", False), ("level_difference", True), ("both", True)])
def test_a_front_end_that_hears_no_sides_is_named(
    clips: list[str], caplog: pytest.LogCaptureFixture, channel: str, told: bool
) -> None:
    """A real encoder: what mixes the channels ties to the bit, and the score is neither taken for skill nor for its lack."""
    torch.manual_seed(0)
    front_end = MelConfig(rate=8000, window=256, hop=160, mels=16, mean=-8.0, std=4.0, channel=channel)
    sound = AudioTransformerConfig(front_end=front_end, seconds=2.0, patch_size=(16, 10), width=32, depth=1, heads=2)
    encoders = {"video": Formula(side_of_picture, 2), "audio": sound.build()}
    probe = configured(SidesConfig, pair=["video", "audio"], shards=clips, batch_size=5).build(modalities())
    scores = dict(probe.evaluate(EmbeddingModel(encoders, {"video": nn.Identity(), "audio": nn.Linear(32, 2)})))
    assert scores["tie_rate"] == (0 if told else 1)
    if told:
        assert not caplog.text
        return
    assert scores["acc"] == 0.5
    assert "sides of ['video', 'audio']: 100.0 % of the choices are ties" in caplog.text
    assert "`channel: level_difference` (or `both`) in the front-end of the encoder of 'audio'" in caplog.text


def test_sides_in_captions(clips: list[str]) -> None:
    text = modalities()["text"]
    assert isinstance(text, TextModality)
    left, right = (text.tokenize([word])[0, 1] for word in ("left", "right"))

    def first_side(tokens: Tensor) -> Tensor:
        """Which side is named first, weighed by how early: [B, T] -> [B, 2]."""
        weight = 0.5 ** torch.arange(tokens.shape[1])
        return torch.stack([((tokens == word) * weight).sum(1) + 0.01 for word in (left, right)], 1)

    probe = configured(SidesConfig, pair=["video", "text"], shards=clips).build(modalities())
    scores = dict(probe.evaluate(model(2, video=side_of_picture, text=first_side)))
    assert 5 < scores["n"] <= 24
    blind = dict(probe.evaluate(model(2, video=lambda x: torch.ones(len(x), 2), text=first_side)))
    assert blind["acc"] == 0.5
    single = dict(probe.evaluate(model(2, video=side_of_picture, text=lambda x: first_side(x).flip(1))))
    assert scores["acc"] > 0.6, "a clip that moves to a side spends half of its time on the other"
    assert scores["acc"] == pytest.approx(1 - single["acc"])


def flashes(x: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> how unlike the usual frame each one is."""
    x = x.float().flatten(2)
    change = (x - x.median(1, keepdim=True).values).abs().mean(2)
    return change - change.median(1, keepdim=True).values


def beeps(x: Tensor) -> Tensor:
    """[B, C, samples] -> energy in each of T parts."""
    return x.float().square().sum(1).reshape(len(x), FRAMES, -1).mean(2) + 1e-3


def test_channels_that_hardly_differ_are_told_with_the_threshold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields = []
    for number, level in enumerate((0.9, 0.8, 0.95)):
        sound, file = 0.1 * rng.standard_normal(8000), io.BytesIO()
        soundfile.write(file, np.stack([sound, level * sound], 1), 8000, format="WAV", subtype="FLOAT")
        fields.append({"__key__": f"s{number}", "png": png((9, 9, 9), number), "wav": file.getvalue()})
    shards = [str(write(tmp_path / "a.tar", fields))]
    made = modalities(extensions=["wav"])
    probe = configured(SidesConfig, pair=["image", "audio"], shards=shards).build(made)
    share = (1 - 0.8) ** 2 / (1 + 0.8**2)
    found = rf"share of that of both, is {share:.3g}, wanted at least 0\.1$"
    ones = model(2, image=lambda x: torch.ones(len(x), 2), audio=side_of_sound)
    with pytest.raises(DataError, match=rf"of 3, 3 lack a modality or the relation.*; at most, the power .*{found}"):
        list(probe.evaluate(ones))


def test_a_model_that_hears_moments_loses_them_with_the_offset(clips: list[str]) -> None:
    made = modalities(channels="mono")
    config = {"pair": ["video", "audio"], "shards": clips, "seconds": 2.0, "offsets": [0, 0.3, 1.0]}
    scores = dict(configured(OffsetConfig, **config).build(made).evaluate(model(FRAMES, video=flashes, audio=beeps)))
    assert (scores["n"], scores["R@1_at_0_chance"]) == (24, 1 / 24)
    assert scores["in_sync_acc"] > 0.8 > scores["in_sync_chance"]
    assert scores["R@1_at_0"] > 0.6 > scores["R@1_at_0.3"]
    deaf = dict(
        configured(OffsetConfig, **config)
        .build(made)
        .evaluate(model(FRAMES, video=flashes, audio=lambda x: torch.ones(len(x), FRAMES)))
    )
    assert deaf["R@1_at_0"] == deaf["R@1_at_1"]
    assert deaf["in_sync_acc"] == pytest.approx(1 / 3), "a third for each of three candidates"
    assert (scores["tie_rate"], deaf["tie_rate"]) == (0, 1)
    assert scores["in_sync_acc_ci95_low"] < scores["in_sync_acc"] <= scores["in_sync_acc_ci95_high"] + 1e-9
    longer = configured(OffsetConfig, **{**config, "offsets": [0, 2.0]}).build(made)
    with pytest.raises(
        DataError, match=r"no sample has the relation.*of 24, 24 lack a modality or the relation, and 0"
    ):
        list(longer.evaluate(model(FRAMES, video=flashes, audio=beeps)))


def test_wrong_pairs_are_refused() -> None:
    with pytest.raises(RecipeError, match="and 'image' has no left and right to exchange"):
        configured(SidesConfig, pair=["audio", "image"], shards=["x"]).build(modalities())
    with pytest.raises(RecipeError, match="and 'audio' has no left and right to exchange"):
        configured(SidesConfig, pair=["image", "audio"], shards=["x"]).build(modalities(channels="mono"))
    with pytest.raises(ValueError, match="two different modalities"):
        configured(SidesConfig, pair=["audio", "audio"], shards=["x"])
    with pytest.raises(ValueError, match="wanted 0 first and then ascending numbers"):
        configured(OffsetConfig, pair=["video", "audio"], shards=["x"], seconds=1.0, offsets=[0.5, 1.0])


def test_captions_have_no_time(clips: list[str]) -> None:
    probe = configured(OffsetConfig, pair=["text", "audio"], shards=clips, seconds=0.5).build(modalities())
    with pytest.raises(RecipeError, match="got modality 'text' without a time axis, wanted two"):
        list(probe.evaluate(model(2, text=lambda x: torch.ones(len(x), 2), audio=side_of_sound)))


def test_samples_that_lack_one_of_the_pair_are_excluded_and_not_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    sound = rng.standard_normal((24_000, 2)).astype(np.float32) * [0.1, 0.01]
    files = [encode_clip("mp4", frames, None if i == 1 else sound, fps=10, rate=8000) for i in range(4)]
    shards = [str(write(tmp_path / "a.tar", [{"__key__": f"v{i}", "mp4": file} for i, file in enumerate(files)]))]
    ones = model(2, video=lambda x: torch.ones(len(x), 2), audio=side_of_sound)
    sides = dict(configured(SidesConfig, pair=["video", "audio"], shards=shards).build(modalities()).evaluate(ones))
    assert (sides["n"], sides["n_excluded"], sides["n_skipped"]) == (3, 1, 0)
    config = {"pair": ["video", "audio"], "shards": shards, "seconds": 2.0, "offsets": [0, 0.5]}
    offset = dict(configured(OffsetConfig, **config).build(modalities()).evaluate(ones))
    assert (offset["n"], offset["n_excluded"], offset["n_skipped"]) == (3, 1, 0)


@pytest.mark.parametrize("broken", ["video", "audio"])
def test_embeddings_that_are_not_finite_are_named_by_key(clips: list[str], broken: str) -> None:
    fine = {"video": side_of_picture, "audio": side_of_sound}
    probe = configured(SidesConfig, pair=["video", "audio"], shards=clips, max_samples=8).build(modalities())
    with pytest.raises(NumericError, match=rf"the embedding of '{broken}' .* of key 'test-.* is not finite"):
        list(probe.evaluate(model(2, **{**fine, broken: lambda x: torch.full((len(x), 2), torch.nan)})))
