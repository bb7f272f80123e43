"""Parity with open_clip: the same weights and inputs give the same features, and state dicts survive both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import CheckpointError
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.interop.open_clip import encoder_configs, from_open_clip, load_open_clip, open_clip_config, to_open_clip

TEXT = {"context_length": 16, "vocab_size": 100, "width": 48, "heads": 4, "layers": 3}
VIT = {"image_size": 48, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick_gelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "options": {
        "embed_dim": 24,
        "vision_cfg": VIT | {"pool_type": "avg", "no_ln_pre": True, "ls_init_value": 0.3, "mlp_ratio": 2.5},
        "text_cfg": TEXT | {"ls_init_value": 0.2, "mlp_ratio": 3.0},
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": TEXT,
    },
}
EVERY = pytest.mark.parametrize("name", MODELS)
CUSTOM = pytest.mark.parametrize("custom", [False, True])


def theirs(name: str, custom: bool = False) -> Any:
    """An open_clip model with every tensor moved off its start, running statistics included."""
    torch.manual_seed(0)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model.eval()


def pictures(size: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def captions(count: int = 3, length: int = 16, vocabulary: int = 100) -> Tensor:
    ids = torch.randint(1, vocabulary - 2, (count, length), generator=torch.Generator().manual_seed(2))
    for row in range(count):
        ids[row, 4 + row] = vocabulary - 1
        ids[row, 5 + row :] = 0
    return ids


def features(model: EmbeddingModel, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Projected, before normalisation."""
    return (
        model.heads["image"](model.features("image", x)),
        model.heads["text"](model.features("text", ids)),
    )


@EVERY
@CUSTOM
def test_features_and_embeddings_are_open_clips(name: str, custom: bool) -> None:
    model = theirs(name, custom)
    ours = load_open_clip(MODELS[name], model.state_dict()).eval()
    x, ids = pictures(MODELS[name]["vision_cfg"]["image_size"]), captions()
    normalised = ours.encoders["image"].prepare(x)  # type: ignore[operator]
    with torch.no_grad():
        image, text = features(ours, x, ids)
        torch.testing.assert_close(image, model.encode_image(normalised), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text, model.encode_text(ids), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            ours.embed("image", x), model.encode_image(normalised, normalize=True), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(ours.embed("text", ids), model.encode_text(ids, normalize=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        VisionTransformerConfig(size=32, patch_size=16, width=32, depth=1, heads=2),
        ResNetConfig(size=32, layers=(1, 1), channels=8),
        SpaceTimeConfig(size=32, frames=2, patch_size=16, width=32, depth=1, heads=2),
    ],
    ids=lambda config: config.kind,
)
def test_pictures_are_normalised_as_open_clips_are(config: Any) -> None:
    x = torch.arange(256).repeat(4, 3).reshape(1, 3, 32, 32).to(torch.uint8)
    theirs = image_transform(32, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    wanted = theirs(Image.fromarray(x[0].permute(1, 2, 0).numpy()))
    prepared = config.build().prepare(x).movedim(1, -3)  # [1, 3, H, W], or of a clip of equal frames [1, T, 3, H, W]
    torch.testing.assert_close(prepared, wanted.expand_as(prepared))


@EVERY
def test_gradients_are_open_clips(name: str) -> None:
    model = theirs(name)
    ours = load_open_clip(MODELS[name], model.state_dict()).eval()
    x, ids = pictures(MODELS[name]["vision_cfg"]["image_size"]), captions()
    image, text = features(ours, x, ids)
    (image.sin().sum() + text.sin().sum()).backward()
    (model.encode_image(ours.encoders["image"].prepare(x)).sin().sum() + model.encode_text(ids).sin().sum()).backward()  # type: ignore[operator]
    gradients = from_open_clip(
        {key: p.grad for key, p in model.named_parameters() if p.grad is not None} | {"logit_scale": torch.zeros(())}
    )
    for modality in ("image", "text"):
        expected = gradients[modality]  # type: ignore[literal-required]
        own = {key: p.grad for key, p in ours.encoders[modality].named_parameters()}
        assert own.keys() == expected.keys()
        for key, gradient in own.items():
            torch.testing.assert_close(
                gradient, expected[key], atol=1e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}"
            )


@EVERY
@CUSTOM
def test_state_dicts_survive_both_ways_bit_for_bit(name: str, custom: bool) -> None:
    state = theirs(name, custom).state_dict()
    back = to_open_clip(from_open_clip(state), custom_text=custom)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert all(tensor.is_contiguous() for tensor in back.values())
    other = to_open_clip(from_open_clip(state), custom_text=not custom)
    theirs(name, not custom).load_state_dict(other)  # strict


@EVERY
def test_configs_survive_both_ways(name: str) -> None:
    image, text = encoder_configs(MODELS[name])
    config = open_clip_config(image, text, 24)
    assert encoder_configs(config) == (image, text)
    state = theirs(name).state_dict()
    open_clip.CLIP(**config).load_state_dict(state)  # strict


def test_every_plain_model_file_of_open_clip_is_understood() -> None:
    plain = 0
    for name in open_clip.list_models():
        model = open_clip.get_model_config(name)
        try:
            image, text = encoder_configs(model)
        except ValueError as error:
            assert "our" in str(error)  # noqa: PT017
            continue
        plain += 1
        assert encoder_configs(open_clip_config(image, text, model["embed_dim"])) == (image, text)
    assert plain >= 40  # 42 of open_clip 3.3's


def test_a_trained_head_behind_a_resnet_is_folded_in() -> None:
    model = theirs("resnet")
    state = from_open_clip(model.state_dict())
    assert torch.equal(state["heads"]["image"], torch.eye(24))
    head = torch.randn(24, 24)
    state["heads"]["image"] = head
    expected = model.encode_image(pictures(64)) @ head.T
    model.load_state_dict(to_open_clip(state))
    torch.testing.assert_close(model.encode_image(pictures(64)), expected, atol=1e-5, rtol=1e-5)


def test_the_logit_bias_and_shapes_of_one_are_kept() -> None:
    model = open_clip.CLIP(**MODELS["vit"], init_logit_bias=-10, nonscalar_logit_scale=True)
    state = from_open_clip(model.state_dict())
    assert state["logit_bias"] is not None
    assert state["logit_bias"].tolist() == -10
    assert state["logit_scale"].shape == ()
    assert to_open_clip(state)["logit_bias"].tolist() == -10


@EVERY
@CUSTOM
def test_encoders_take_whole_checkpoints_as_weights(name: str, custom: bool, tmp_path: Path) -> None:
    model = theirs(name, custom)
    file = tmp_path / "epoch_3.pt"
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in model.state_dict().items()}}, file
    )
    expected = from_open_clip(model.state_dict())
    for modality, config in zip(("image", "text"), encoder_configs(MODELS[name]), strict=True):
        state = config.model_copy(update={"weights": file}).build().state_dict()
        assert state.keys() == expected[modality].keys()  # type: ignore[literal-required]
        assert all(torch.equal(state[key], tensor) for key, tensor in expected[modality].items())  # type: ignore[literal-required]


def test_positions_are_resampled_as_open_clip_does(tmp_path: Path) -> None:
    model = theirs("vit")
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    larger = open_clip.CLIP(**(MODELS["vit"] | {"vision_cfg": VIT | {"image_size": 80}})).eval()
    state = dict(model.state_dict())
    open_clip.model.resize_pos_embed(state, larger)
    image, _ = encoder_configs(MODELS["vit"])
    encoder = image.model_copy(update={"weights": file, "size": 80}).build()
    torch.testing.assert_close(encoder.positional_embedding, state["visual.positional_embedding"])


def test_what_our_towers_lack_is_refused_by_name() -> None:
    for vision, text, message in (
        ({"attentional_pool": True}, {}, r"vision_cfg has \['attentional_pool'\]"),
        ({"pool_type": "none"}, {}, "wanted tok or avg"),
        ({}, {"embed_cls": True}, r"text_cfg has \['embed_cls'\]"),
        ({}, {"pool_type": "last"}, "wanted causal attention and pool_type argmax"),
        ({}, {"no_causal_mask": True}, "causal attention"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder_configs({"embed_dim": 8, "vision_cfg": VIT | vision, "text_cfg": TEXT | text})
    vit, text_config = VisionTransformerConfig(), TextTransformerConfig()
    for image, words, message in (
        (vit, text_config.model_copy(update={"causal": False}), "causal: true"),
        (vit, text_config.model_copy(update={"activation": "quick_gelu"}), "the same activation"),
        (
            vit.model_copy(update={"class_token": False}),
            text_config,
            "wanted class_token: true, registers: 0 and the same activation in both",
        ),
        (ResNetConfig(layers=(1, 1)), text_config, "four stages"),
    ):
        with pytest.raises(ValueError, match=message):
            open_clip_config(image, words, 8)


def test_states_of_other_models_are_refused() -> None:
    state = theirs("vit").state_dict()
    for wrong, message in (
        ({}, "got 0 tensors under 'visual.'"),
        (state | {"text_decoder.ln_1.weight": torch.zeros(1)}, "text_decoder.ln_1.weight"),
        ({key: x for key, x in state.items() if key != "text_projection"}, "wanted the state dict of a CLIP model"),
        ({key.replace("visual.", "visual.trunk."): x for key, x in state.items()}, "wanted a ViT or a ModifiedResNet"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_open_clip(wrong)
    deeper = MODELS["vit"] | {"text_cfg": TEXT | {"layers": 4}}
    with pytest.raises(CheckpointError, match="does not match this configuration"):
        load_open_clip(deeper, state)


@pytest.mark.parametrize("shallow", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50"])
def test_real_sizes_are_at_par(name: str, shallow: bool) -> None:
    """`shallow`: with two blocks or one of a stage, all else as it is."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    if shallow:
        layers = [1, 1, 1, 1] if name == "RN50" else 2
        config = {
            **config,
            "vision_cfg": config["vision_cfg"] | {"layers": layers},
            "text_cfg": config["text_cfg"] | {"layers": 2},
        }
    model = open_clip.CLIP(**config).eval()
    ours = load_open_clip(config, model.state_dict()).eval()
    x, ids = pictures(224, 2), captions(2, 77, 49408)
    with torch.no_grad():
        image, text = features(ours, x, ids)
        assert isinstance(ours.encoders["image"], nn.Module)
        torch.testing.assert_close(image, model.encode_image(ours.encoders["image"].prepare(x)), atol=1e-5, rtol=1e-5)  # type: ignore[operator]
        torch.testing.assert_close(text, model.encode_text(ids), atol=1e-5, rtol=1e-5)
