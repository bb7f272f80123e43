"""Statistics of front-ends over shards: those that can be known beforehand, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.core.errors import DataError, RecipeError
from mmssl.data.media.encode import encode_clip
from mmssl.data.shards.writer import write_shard
from mmssl.datasets.digit_render import to_wav
from mmssl.encoders.spectrogram import PRESETS, MelConfig
from pipelines import cli
from pipelines.command import guarded
from pipelines.spectrogram_stats import front_end_stats


def sounds(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.normal(0, 1 + i, (16_000 + 160 * i, 2))).clip(-1, 1).astype(np.float32) for i in range(count)]


def make(folder: Path) -> list[np.ndarray]:
    waves = sounds(3)
    samples = [{"__key__": f"{i}", "wav": to_wav(wave, 16_000)} for i, wave in enumerate(waves)]
    mute = encode_clip("mp4", np.zeros((3, 32, 32, 3), dtype=np.uint8), None, fps=15)
    samples += [{"__key__": "mute", "mp4": mute}, {"__key__": "bad", "wav": b"?"}]
    samples += [{"__key__": "short", "wav": to_wav(waves[0][:100], 16_000)}]
    write_shard(folder, "000000.tar", 0, len(samples), samples)
    return waves


@pytest.mark.parametrize("name", ["mel", "ast"])
def test_figures_are_those_of_all_values(tmp_path: Path, name: str) -> None:
    waves = make(tmp_path)
    report = front_end_stats([str(tmp_path)], name, sample=100)
    settings = {"mel": MelConfig(), **PRESETS}[name].model_copy(update={"mean": 0.0, "std": 1.0, "frames": None})
    values = torch.cat(
        [settings.build()(torch.from_numpy(np.rint(wave.T[None] * 32767) / 32768)).flatten() for wave in waves]
    )
    assert (report.sounds, report.left_out) == (3, 3)
    assert report.mean == pytest.approx(values.mean().item(), abs=1e-3)
    assert report.std == pytest.approx(values.std().item(), abs=1e-3)


@pytest.mark.parametrize("channel", ["mean", "first", "both", "level_difference"])
def test_settings_of_a_recipe_are_measured(tmp_path: Path, channel: str) -> None:
    waves = make(tmp_path)
    written = (
        f"{{kind: mel, rate: 16000, mels: 20, window: 256, hop: 80, channel: {channel}, mean: -3, std: 2, frames: 50}}"
    )
    report = front_end_stats([str(tmp_path)], written, sample=100)
    heard = "mean" if channel == "level_difference" else channel
    front_end = MelConfig(mels=20, window=256, hop=80, channel=heard).build()  # type: ignore[arg-type]
    values = torch.cat([front_end(torch.from_numpy(np.rint(wave.T[None] * 32767) / 32768)).flatten() for wave in waves])
    assert report.mean == pytest.approx(values.mean().item(), abs=1e-3)
    assert report.std == pytest.approx(values.std().item(), abs=1e-3)


def test_what_is_hidden_in_training_is_measured_too(tmp_path: Path) -> None:
    make(tmp_path)
    masks = "spec_augment: {filter_masks: 2, filter_width: 20}"
    plain, masked = (
        front_end_stats([str(tmp_path)], f"{{kind: ast, {more}}}", sample=100) for more in ("frames: 9", masks)
    )
    assert (plain.mean, plain.std) == (masked.mean, masked.std)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    report = tmp_path / "report.json"
    assert guarded(cli.full(), ["shards", "stats", str(tmp_path), "--front-end", "mel", "--json", str(report)]) == 0
    written = json.loads(report.read_text())
    assert f"mean {written['mean']:.4f}, std {written['std']:.4f} over 3 sounds" in capsys.readouterr().out


def test_refusals(tmp_path: Path) -> None:
    write_shard(tmp_path, "000000.tar", 0, 1, [{"__key__": "a", "txt": b"no sound"}])
    with pytest.raises(RecipeError, match="did you mean 'ast'"):
        front_end_stats([str(tmp_path)], "asst", sample=10)
    with pytest.raises(RecipeError, match="melz"):
        front_end_stats([str(tmp_path)], "{kind: mel, melz: 20}", sample=10)
    with pytest.raises(DataError, match="no sample of 1 has a sound"):
        front_end_stats([str(tmp_path)], "mel", sample=10)
