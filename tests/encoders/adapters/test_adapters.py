"""What the adapters to timm, open_clip and transformers do beyond the contract."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from mmssl.core.errors import CheckpointError
from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.adapter import Adapter, group_names
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfTextConfig, HfVisionConfig
from mmssl.encoders.pixels import OPENAI_MEAN
from tests.encoders.kinds import (
    BERT,
    CONTEXT,
    END,
    HF_CLAP,
    HF_CLIP,
    HF_VIT,
    OPEN_CLIP,
    START,
    VOCABULARY,
    config_of,
    inputs,
)

PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_names_are_grouped_from_input_to_output() -> None:
    names = ["proj", "embed.w", "stages.0.blocks.0.w", "stages.0.blocks.1.w", "stages.1.w", "norm.w", "pooler.w"]
    assert group_names(names, idle={"pooler.w"}, last=("proj",)) == [
        ["embed.w", "pooler.w"],
        ["stages.0.blocks.0.w", "stages.0.blocks.1.w"],
        ["stages.1.w"],
        ["proj", "norm.w"],
    ]


def test_idle_parameters_are_taken_out_of_training_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmssl.encoders.adapters.adapter"):
        encoder = HfTextConfig(config=BERT, pool="mean").build()
    idle = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert sorted(idle) == ["model.pooler.dense.bias", "model.pooler.dense.weight"]
    assert "2 parameters of HfTextEncoder do not reach its output and are frozen" in caplog.text
    assert encoder.training


# timm


def test_timm_gives_what_timm_gives() -> None:
    for name in ("test_vit", "test_resnet"):
        encoder = TimmConfig(model=name, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).build().eval()
        plain = timm.create_model(name, num_classes=0).eval()
        plain.load_state_dict(encoder.model.state_dict())
        x = torch.rand(2, 3, 160, 160)
        assert torch.equal(encoder(x).pooled, plain(x))


def test_timm_statistics_are_the_models_own() -> None:
    encoder = TimmConfig(model="test_vit", size=32).build()
    assert encoder.pixels.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg("test_vit").mean)
    stated = TimmConfig(model="test_vit", size=32, mean=OPENAI_MEAN).build()
    assert stated.pixels.mean.flatten().tolist() == pytest.approx(OPENAI_MEAN)


def test_timm_weights_load_without_their_classifier_and_to_another_size(tmp_path: Path) -> None:
    plain = timm.create_model("test_vit", num_classes=10).eval()
    file = tmp_path / "model.safetensors"
    save_file(plain.state_dict(), file)
    encoder = TimmConfig(model="test_vit", weights=file).build().eval()
    x = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(
        encoder(x).pooled, plain.forward_head(plain.forward_features(encoder.prepare(x)), pre_logits=True)
    )
    smaller = TimmConfig(model="test_vit", size=32, weights=file).build()
    assert smaller.grid == (2, 2)
    resampled = timm.layers.resample_abs_pos_embed(plain.state_dict()["pos_embed"], [2, 2])
    torch.testing.assert_close(smaller.model.pos_embed, resampled)
    torch.testing.assert_close(smaller.model.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight)


def test_timm_errors_say_what_to_do(tmp_path: Path) -> None:
    for settings, message in (
        ({"model": "test_vitt"}, "wanted the name of a timm model, did you mean 'test_vit"),
        ({"model": "vgg11", "drop_path": 0.1}, "timm's 'vgg11' does not take {'drop_path_rate': 0.1}"),
        ({"model": "test_resnet", "checkpointing": True}, "running statistics twice a step"),
        ({"model": "test_resnet", "pool": ""}, "choose a `pool` that gives one vector"),
    ):
        with pytest.raises(ValueError, match=message):
            TimmConfig.model_validate(settings).build()
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit2", num_classes=0).state_dict(), file)
    with pytest.raises(CheckpointError, match="was not made for this VisionTransformer"):
        TimmConfig(model="test_vit", weights=file).build()


# open_clip


def test_open_clip_gives_what_open_clip_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**OPEN_CLIP).eval()
    file = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{n}": x for n, x in model.state_dict().items()}}, file)
    custom = tmp_path / "custom.safetensors"
    save_file(open_clip.model.convert_to_custom_text_state_dict(model.state_dict()), custom)
    ids = inputs("text")
    for weights in (file, custom):
        image = config_of("open_clip_image", tmp_path, weights=weights).build().eval()  # type: ignore[attr-defined]
        text = config_of("open_clip_text", tmp_path, weights=weights).build().eval()  # type: ignore[attr-defined]
        torch.testing.assert_close(image(PICTURES).pooled, model.encode_image(image.prepare(PICTURES)))
        torch.testing.assert_close(text(ids).pooled, model.encode_text(ids))


def test_open_clip_builds_one_tower_only() -> None:
    """The other tower is not even there: a text tower of ViT-B-32 has open_clip's count of parameters, no more."""
    encoder = OpenClipConfig(model="ViT-B-32", tower="text").build()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 63_428_096
    assert len(encoder.layers()) == 14


def test_open_clip_errors_say_what_to_do(tmp_path: Path) -> None:
    for settings, message in (
        ({"model": "ViT-B-33", "tower": "image"}, "did you mean 'ViT-B-32'"),
        ({"model": "hf-hub:org/name", "tower": "image"}, "nothing is downloaded"),
        ({"model": "roberta-ViT-B-32", "tower": "text"}, "use kind: hf_text with a local folder"),
        ({"model": f"local-dir:{tmp_path}", "tower": "text"}, "open_clip_config.json is missing"),
        ({"model": "ViT-B-32", "tower": "text", "mean": OPENAI_MEAN}, "got mean or std for a text tower"),
        ({"model": "RN50", "tower": "image", "checkpointing": True}, "running statistics twice a step"),
    ):
        with pytest.raises(ValueError, match=message):
            OpenClipConfig.model_validate(settings).build()


def test_open_clip_models_that_do_not_fit_are_refused_with_a_sentence(tmp_path: Path) -> None:
    """open_clip hands the size of its pictures to the transformers of timm in no way."""
    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "image_size": 96,
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP | {"vision_cfg": vision}}))
    with pytest.raises(
        ValueError, match=r"TimmModel cannot encode an input of shape \[1, 3, 96, 96\] .*choose a model"
    ):
        OpenClipConfig(model=f"local-dir:{tmp_path}", tower="image").build()


# transformers


def saved(folder: Path, settings: dict[str, Any]) -> Any:
    """A transformers model with random weights, saved as its hub would have it."""
    torch.manual_seed(0)
    rest = {name: value for name, value in settings.items() if name != "model_type"}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(settings["model_type"], **rest))
    model.save_pretrained(folder)
    return model.eval()


def test_transformers_text_pools_are_right(tmp_path: Path) -> None:
    model, ids = saved(tmp_path, BERT), inputs("text")
    real = ids != 0
    states = model(input_ids=ids, attention_mask=real.long()).last_hidden_state
    last = real.sum(1) - 1
    expected = {
        "cls": states[:, 0],
        "last": torch.stack([states[row, end] for row, end in enumerate(last)]),
        "mean": torch.stack([states[row, : end + 1].mean(0) for row, end in enumerate(last)]),
        "eos": torch.stack([states[row, end] for row, end in enumerate(last)]),
    }
    for pool, pooled in expected.items():
        eos_id = END if pool == "eos" else None
        encoder = HfTextConfig.model_validate({"path": tmp_path, "pool": pool, "eos_id": eos_id}).build().eval()
        torch.testing.assert_close(encoder(ids).pooled, pooled)
        torch.testing.assert_close(encoder(ids[:, : int(last.max()) + 1]).pooled, pooled)


def test_transformers_towers_are_taken_out_of_clip(tmp_path: Path) -> None:
    model, ids = saved(tmp_path, HF_CLIP), inputs("text")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]})
    )
    image = HfVisionConfig(path=tmp_path, pool="pooler").build().eval()
    text = HfTextConfig(path=tmp_path, pool="eos").build().eval()
    assert image.pixels.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])
    features = model.get_image_features(pixel_values=image.prepare(PICTURES)).pooler_output
    torch.testing.assert_close(model.visual_projection(image(PICTURES).pooled), features)
    features = model.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    torch.testing.assert_close(model.text_projection(text(ids).pooled), features)


def test_the_text_tower_is_taken_out_of_clap(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = sizes | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 1}
    audio = {name: value for name, value in HF_CLAP.items() if name != "model_type"}
    model = saved(tmp_path, {"model_type": "clap", "text_config": text, "audio_config": audio, "projection_dim": 24})
    encoder, ids = HfTextConfig(path=tmp_path, pool="cls").build().eval(), torch.tensor([[0, 7, 5, 2, 1, 1]])
    states = model.text_model(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
    torch.testing.assert_close(encoder(ids).pooled, states[:, 0])
    assert encoder.token_ids == TokenIds(14, VOCABULARY)
    with pytest.raises(ValueError, match=r"got a clap model of .*wanted one with a vision_model"):
        HfVisionConfig(path=tmp_path, pool="cls", mean=OPENAI_MEAN, std=OPENAI_MEAN).build()


def test_models_of_another_modality_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"ViTModel cannot encode an input of shape \[1, 4\] .*choose a model"):
        HfTextConfig(config=HF_VIT, pool="cls", pad_id=0).build()


def test_transformers_encoders_are_taken_out_of_t5() -> None:
    settings = {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": VOCABULARY,
    }
    encoder = HfTextConfig(config=settings, pool="mean").build()
    assert not any("decoder" in name or "EncDec" in name for name, _ in encoder.named_parameters())
    assert encoder(inputs("text")).pooled.shape == (3, 32)


def test_where_padding_ends_texts_its_first_occurrence_counts() -> None:
    settings = {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": VOCABULARY,
        "n_positions": CONTEXT,
    }
    settings |= {"eos_token_id": END, "bos_token_id": START}
    encoder = HfTextConfig(config=settings, pool="eos", pad_id=END).build().eval()
    ids = inputs("text")
    padded = torch.where(ids == 0, END, ids)
    states = encoder.model(input_ids=ids).last_hidden_state  # causal: padding has no influence
    torch.testing.assert_close(encoder(padded).pooled, states[torch.arange(3), ids.argmax(1)])
    endless = torch.full((1, 5), 7)
    torch.testing.assert_close(encoder(endless).pooled, encoder.model(input_ids=endless).last_hidden_state[:, -1])


def test_convolutional_vision_models_give_cells() -> None:
    settings = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    encoder = HfVisionConfig(config=settings, pool="pooler", size=32).build().eval()
    features = encoder(PICTURES)
    assert features.grid == encoder.grid == (4, 4)
    assert features.tokens is not None
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    with pytest.raises(ValueError, match="without a class token"):
        HfVisionConfig(config=settings, pool="cls", size=32).build()
    with pytest.raises(ValueError, match="running statistics twice a step"):
        HfVisionConfig(config=settings, pool="pooler", size=32, checkpointing=True).build()


def test_weights_that_the_output_needs_must_be_there(tmp_path: Path) -> None:
    """A model without a pooling layer, read with the pool that needs it: not silently random."""
    torch.manual_seed(0)
    rest = {name: value for name, value in HF_VIT.items() if name != "model_type"}
    config = transformers.AutoConfig.for_model("vit", **rest)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    settings = {"path": tmp_path, "mean": OPENAI_MEAN, "std": OPENAI_MEAN}
    assert HfVisionConfig(pool="cls", **settings).build().width == 32
    with pytest.raises(CheckpointError, match=r"no weights for 2 tensors of this encoder, .*pooler"):
        HfVisionConfig(pool="pooler", **settings).build()


def test_folders_that_bring_code_or_pickles_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, BERT)
    file = tmp_path / "config.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps(good | {"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(ValueError, match="runs code from its folder, which is refused"):
        HfTextConfig(path=tmp_path, pool="mean").build()
    with pytest.raises(ValueError, match="auto_map"):
        HfTextConfig(config=BERT | {"auto_map": {}}, pool="mean").build()
    file.write_text(json.dumps(good))
    weights = tmp_path / "model.safetensors"
    torch.save(transformers.AutoModel.from_pretrained(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot load the model"):
        HfTextConfig(path=tmp_path, pool="mean").build()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"wanted a model's config\.json"):
        HfTextConfig(path=tmp_path, pool="mean").build()


def test_transformers_errors_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(BERT))
    assert HfTextConfig(config=file, pool="mean").build().width == 32
    for settings, message in (
        ({"config": BERT, "pool": "eos"}, "set eos_id to the tokenizer's"),
        (
            {"config": BERT | {"model_type": "berd"}, "pool": "cls"},
            "got model_type 'berd' in config, .* did you mean 'bert'",
        ),
        ({"pool": "cls"}, "wanted exactly one of path"),
        ({"config": BERT, "path": tmp_path, "pool": "cls"}, "wanted exactly one of path"),
    ):
        with pytest.raises((ValueError, ValidationError), match=message):
            HfTextConfig.model_validate(settings).build()
    with pytest.raises(ValueError, match="size: got 64, wanted this model's image_size 32"):
        HfVisionConfig(config=HF_VIT, pool="cls", size=64).build()
    saved(tmp_path, HF_VIT)
    with pytest.raises(ValueError, match="set mean and std"):
        HfVisionConfig(path=tmp_path, pool="cls").build()


def test_adapters_can_be_copied() -> None:
    """Teachers are deep copies: layers must then list the copy's parameters."""
    encoder = HfTextConfig(config=BERT, pool="mean").build()
    twin = copy.deepcopy(encoder)
    assert isinstance(twin, Adapter)
    own = {id(parameter) for parameter in twin.parameters()}
    assert {id(parameter) for group in twin.layers() for parameter in group} == own
    assert own.isdisjoint({id(parameter) for parameter in encoder.parameters()})
    assert isinstance(twin.model, nn.Module)
