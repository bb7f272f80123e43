"""Checkpoints of every layout give the same tensors, and none runs code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmssl.core.errors import CheckpointError
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.encoders.weight_files import read_state

VIT = VisionTransformerConfig(size=16, patch_size=8, width=16, depth=1, heads=2)
STATE = VIT.build().state_dict()
OTHER = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Any] = {
    "bare": STATE,
    "data parallel": {"state_dict": under("module."), "epoch": 3},
    "compiled and parallel": under("module._orig_mod."),
    "Lightning": {"state_dict": under("model.") | {"loss.scale": torch.ones(1)}, "hyper_parameters": {"lr": 1e-3}},
    "arguments beside": {"model": STATE, "args": argparse.Namespace(lr=1e-3, path="x")},
    "figures of numpy beside": {"state_dict": STATE, "best": np.float64(0.5), "step": np.int64(3)},
    "trainer": {
        "model": {"state_dict": STATE},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
        "rng": torch.ones(1),
    },
    "average of timm": {"state_dict": OTHER, "state_dict_ema": STATE},
    "average of a trainer": {"model": OTHER, "ema": {"decay": 0.99, "module": STATE}},
    "average beside, in one dict": under("model.", OTHER) | under("ema_model."),
    "averaged model of torch": under("module.") | {"n_averaged": torch.tensor(3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_encoder(layout: str, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "weights.pt")
    loaded = VIT.model_copy(update={"weights": tmp_path / "weights.pt"}).build()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in STATE.items())
    assert loaded.start is not None
    assert set(loaded.start.exact) == set(STATE)


def test_model_folders_are_read_also_in_parts(tmp_path: Path) -> None:
    names = list(STATE)
    save_file({name: STATE[name] for name in names[:4]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: STATE[name] for name in names[4:]}, tmp_path / "model-00002-of-00002.safetensors")
    places = {name: f"model-0000{1 + (i >= 4)}-of-00002.safetensors" for i, name in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert {name: tensor.tolist() for name, tensor in read_state(tmp_path).items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        read_state(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"a folder without weights: wanted one of open_clip_model\.safetensors"):
        read_state(tmp_path)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("touched-by-a-pickle"),)


def test_code_hidden_in_harmless_types_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "args": argparse.Namespace(bad=Payload())}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match="Files with program code"):
        read_state(tmp_path / "evil.bin")
    assert not (tmp_path / "touched-by-a-pickle").exists()


def test_what_does_not_fit_stays_at_random_where_that_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    state = {name: tensor for name, tensor in STATE.items() if name != "norm_post.bias"}
    save_file(state | {"head.weight": torch.zeros(2)}, file)
    wider = VIT.model_copy(update={"weights": file, "mlp_ratio": 2.0})
    with pytest.raises(CheckpointError, match="partial: true takes what fits"):
        wider.build()
    encoder = wider.model_copy(update={"partial": True}).build()
    assert encoder.start is not None
    assert set(encoder.start.fresh) == {
        "norm_post.bias", "blocks.0.mlp.up.weight", "blocks.0.mlp.up.bias", "blocks.0.mlp.down.weight",
    }  # fmt: skip
    assert encoder.start.stored - encoder.start.taken == {
        "head.weight", "blocks.0.mlp.up.weight", "blocks.0.mlp.up.bias", "blocks.0.mlp.down.weight",
    }  # fmt: skip
    assert torch.equal(encoder.class_embedding, STATE["class_embedding"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="partial: true without weights"):
        VIT.model_copy(update={"partial": True}).build()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_see_a_grey_picture_as_before(channels: int, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    changes = {"weights": tmp_path / "weights.safetensors", "mean": (0.0,) * channels, "std": (1.0,) * channels}
    before, after = (
        VIT.model_copy(update=change).build().eval()
        for change in ({"weights": changes["weights"], "mean": (0.0,) * 3, "std": (1.0,) * 3}, changes)
    )
    grey = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    if channels == 1:
        expected = before(grey.expand(-1, 3, -1, -1)).pooled
        torch.testing.assert_close(after(grey).pooled, expected, atol=1e-5, rtol=1e-5)
    else:
        weight = after.get_parameter("patch_embedding.weight")
        copies = [STATE["patch_embedding.weight"][:, channel % 3] * 3 / channels for channel in range(channels)]
        torch.testing.assert_close(weight, torch.stack(copies, 1))
    assert after.start is not None
    assert after.start.resized == {"patch_embedding.weight": f"[16, 3, 8, 8] to [16, {channels}, 8, 8]"}


def test_scripted_models_are_refused(tmp_path: Path) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(traced, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="whole models, TorchScript archives"):
        read_state(tmp_path / "model.pt")
