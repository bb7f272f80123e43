"""Towers of transformers' two-tower models with their projections, and their weights in our own towers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.encoders.adapters.transformers import HfTextConfig, HfVisionConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from tests.encoders.kinds import stir

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = {"image_size": 32, "patch_size": 8, **TOWER}
TEXTS = {
    "vocab_size": 60,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 59,
    **TOWER,
}
IDS = torch.tensor([[5, 6, 59, 0, 0, 0], [4, 9, 8, 7, 6, 59]])
MODELS: dict[str, Any] = {
    "CLIP": {"vision_config": PICTURES, "text_config": TEXTS, "projection_dim": 16},
    "AltCLIP": {"vision_config": PICTURES, "text_config": TEXTS | {"project_dim": 32}, "projection_dim": 16},
    "ChineseCLIP": {"vision_config": PICTURES, "text_config": TEXTS, "projection_dim": 16},
    "Siglip": {
        "vision_config": PICTURES,
        "text_config": TEXTS | {"max_position_embeddings": 6, "projection_size": 32},
    },
    "Siglip2": {
        "vision_config": {"num_patches": 16, "patch_size": 8, **TOWER},
        "text_config": TEXTS | {"max_position_embeddings": 6, "projection_size": 32},
    },
}


def saved(name: str, folder: Path) -> Any:
    """A model of random weights, none at its start, and its folder as on the hub."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**MODELS[name]))
    stir(model)
    model.eval().save_pretrained(folder)
    return model


def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by", ["weights", "path"])
def test_projections_are_part_of_the_towers(name: str, by: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    source: dict[str, Any] = {"path": tmp_path}
    if by == "weights":
        source = {"config": tmp_path / "config.json", "weights": tmp_path}
    half = (0.5, 0.5, 0.5)
    image = HfVisionConfig(**source, pool="projection", mean=half, std=half).build().eval()
    text = HfTextConfig(**source, pool="projection").build().eval()
    inputs = {"pixel_values": image.prepare(pictures())}
    if name == "Siglip2":
        patches = inputs["pixel_values"].unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, rows, columns, 8, 8]
        inputs = {
            "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 16, 192),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
        }
    mask = None if "Siglip" in name else (IDS != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(
            image(pictures()).pooled, model.get_image_features(**inputs).pooler_output, atol=1e-5, rtol=1e-5
        )
        wanted = model.get_text_features(input_ids=IDS, attention_mask=mask).pooler_output
        torch.testing.assert_close(text(IDS).pooled, wanted, atol=1e-5, rtol=1e-5)
    for encoder in (image, text):
        assert encoder.start is not None
        assert encoder.start.exact
        assert not encoder.start.fresh


@pytest.mark.parametrize("name", ["CLIP", "AltCLIP", "ChineseCLIP"])
def test_our_vision_transformer_takes_their_weights(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    config = VisionTransformerConfig(
        size=32, patch_size=8, width=32, depth=2, heads=2, mlp_ratio=2.0, activation="quick_gelu"
    )
    encoder = config.model_copy(update={"weights": tmp_path}).build().eval()
    with torch.no_grad():
        wanted = model.vision_model(pixel_values=encoder.prepare(pictures())).pooler_output
        torch.testing.assert_close(encoder(pictures()).pooled, wanted, atol=1e-5, rtol=1e-5)


def test_our_text_transformer_takes_their_weights_and_longer_texts(tmp_path: Path) -> None:
    model = saved("CLIP", tmp_path)
    config = TextTransformerConfig(
        vocab_size=60,
        context_length=24,
        width=32,
        depth=2,
        heads=2,
        mlp_ratio=2.0,
        activation="quick_gelu",
        weights=tmp_path,
    )
    ids = torch.nn.functional.pad(IDS, (0, 18))
    with torch.no_grad():
        wanted = model.text_model(input_ids=ids).pooler_output
        torch.testing.assert_close(config.build().eval()(ids).pooled, wanted, atol=1e-5, rtol=1e-5)
        longer = config.model_copy(update={"context_length": 60}).build().eval()
        torch.testing.assert_close(longer(ids).pooled, wanted, atol=1e-5, rtol=1e-5)  # short texts are as before
    assert longer.start is not None
    assert longer.start.resized == {"positional_embedding": "[24, 32] to [60, 32]"}


def test_new_tokens_start_at_the_mean_of_the_old(tmp_path: Path) -> None:
    model = saved("Siglip", tmp_path)
    settings = model.config.to_dict() | {"model_type": "siglip"}
    settings["text_config"]["vocab_size"] = 63
    text = HfTextConfig(config=settings, pool="projection", weights=tmp_path).build()
    old, new = model.text_model.get_input_embeddings().weight, text.tower.get_input_embeddings().weight
    assert torch.equal(new[:60], old)
    torch.testing.assert_close(new[60:], old.mean(0, keepdim=True).expand(3, -1))
    settings["text_config"]["vocab_size"] = 50
    with pytest.raises(CheckpointError, match=r"token_embedding.weight: got \[60, 32\], wanted \[50, 32\]"):
        HfTextConfig(config=settings, pool="projection", weights=tmp_path).build()


def test_a_model_of_one_tower_has_no_projection(tmp_path: Path) -> None:
    settings = {"model_type": "bert", "vocab_size": 60, **TOWER}
    with pytest.raises(ValueError, match="pool: projection for a bert model, wanted one with two towers"):
        HfTextConfig(config=settings, pool="projection").build()


def test_positions_are_stretched_as_in_long_clip() -> None:
    from mmssl.encoders.positions import fit_length

    table = torch.randn(77, 4, generator=torch.Generator().manual_seed(0))
    steps = torch.cat([table[20:], 2 * table[-1:] - table[-2:-1]])  # the last step goes on
    expected = [table[:20]]
    for row, after in pairwise(steps):
        expected += [torch.stack([(4 - part) / 4 * row + part / 4 * after for part in range(4)])]
    torch.testing.assert_close(fit_length(table, 248), torch.cat(expected))
    assert torch.equal(fit_length(table, 30), table[:30])
    assert len(fit_length(table[:21], 40)) == 21  # nothing to stretch


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    settings = MODELS["CLIP"] | {"model_type": "clip"}
    with pytest.raises(CheckpointError, match=r"has no weights for CLIPModel: got names like layer\.weight"):
        HfTextConfig(config=settings, pool="projection", weights=tmp_path).build()
