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
from mmssl.encoders.audio_resnet import AudioResNet, AudioResNetConfig

FRONT_END = {"kind": "mel", "rate": 8000, "window": 256, "hop": 80, "mels": 40, "mean": -8.0, "std": 4.0}


def build(**changes: Any) -> AudioResNet:
    torch.manual_seed(0)
    values = {"front_end": FRONT_END, "seconds": 0.5, "layers": [1, 1], "channels": 8, "zero_init_residual": False}
    return AudioResNetConfig.model_validate_json(json.dumps(values | changes)).build().eval()


def waves(count: int, samples: int = 4000) -> Tensor:
    return 0.1 * torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("samples", "grid"),
    [(4000, (5, 7)), (3839, (5, 6)), (3840, (5, 7)), (8000, (5, 13)), (300, (5, 1))],  # 51, 48, 49, 101 and 4 frames
)
@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_any_length_works_and_no_frame_is_lost(samples: int, grid: tuple[int, int], pool: str) -> None:
    encoder = build(pool=pool)
    assert encoder.grid == (5, 7)
    x = waves(2, samples).requires_grad_()
    features = encoder(x)
    assert features.grid == grid
    assert features.tokens.shape == (2, grid[0] * grid[1], encoder.width)
    features.pooled.sum().backward()
    assert x.grad[..., -80:].abs().max() > 0, "the last frames count"


def test_rows_are_filters_and_columns_are_time() -> None:
    encoder = build(pool="mean", layers=[1])
    quiet = torch.zeros(1, 1, 8000)
    late = quiet.clone()
    late[..., 6000:] = waves(1, 2000)[0, 0]
    one, other = (encoder(x).tokens.unflatten(1, encoder(x).grid) for x in (quiet, late))
    changed = (one - other).abs().amax((0, 3)) > 1e-4
    assert changed[:, -4:].all()
    assert not changed[:, :12].any()


def test_weights_of_another_length_are_resampled(tmp_path: Path) -> None:
    short = build()
    safetensors.torch.save_file(short.state_dict(), tmp_path / "short.safetensors")
    long = build(seconds=1.0, weights=str(tmp_path / "short.safetensors"))
    assert long.grid == (5, 13)
    assert torch.equal(long.conv1.weight, short.conv1.weight)
    assert long.attnpool.positional_embedding.shape == (66, 64)
    same = build(weights=str(tmp_path / "short.safetensors"))
    assert torch.equal(same(waves(2)).pooled, short(waves(2)).pooled)
    with pytest.raises(CheckpointError, match="of another shape"):
        build(channels=16, weights=str(tmp_path / "short.safetensors"))


def test_configs_that_mean_nothing() -> None:
    with pytest.raises(ValidationError, match="wanted at least one block in every stage"):
        build(layers=[1, 0])
    with pytest.raises(ValidationError, match="greater than 0"):
        build(seconds=0.0)
