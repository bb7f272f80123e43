"""Convert open_clip's CLIP checkpoints (ViT or ModifiedResNet, and a text transformer) to ours and back, exactly.

The tensors are the same under other names, with one difference: open_clip keeps the projections into the shared space inside its
towers, as [D, E]; ours are heads beside the encoders, as the weight [E, D] of a linear layer. Its ModifiedResNet has no separate
projection, because its attention pooling ends in one. The head is then the identity; on the way back a trained head is multiplied
into that last layer, which changes no output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder
from mmssl.core.errors import CheckpointError
from mmssl.encoders.adapters import open_clip_names
from mmssl.encoders.norms import USUAL_EPS
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD, ColourValues
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.transformer import BlockActivation
from mmssl.encoders.vit import VisionTransformerConfig

State = dict[str, Tensor]
ImageEncoderConfig = VisionTransformerConfig | ResNetConfig

_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
_NO_TENSORS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's files store as tensors

# Settings of open_clip's model files that our towers have too. Tokenizer settings belong to the data, not to the tower.
_PATCHES = {"patch_size", "patch_dropout", "no_ln_pre", "pool_type", "mlp_ratio", "ls_init_value", "norm_kwargs"}
_VISION = {"image_size", "layers", "width", "head_width", *_PATCHES}
_TOWER = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "norm_kwargs"}
_TOKENIZER = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}


class ClipState(TypedDict):
    """The tensors of a CLIP model by our names.

    image, text: encoder states by our names. heads: "image" and "text" -> weight [E, D]. logit_scale: logarithm, scalar.
    logit_bias: scalar, or None where the model has none.
    """

    image: State
    text: State
    heads: dict[str, Tensor]
    logit_scale: Tensor
    logit_bias: Tensor | None


def from_open_clip(state: Mapping[str, Tensor]) -> ClipState:
    """Convert a state dict of open_clip's CLIP or CustomTextCLIP (or of OpenAI's CLIP) to ours.

    Raises:
        CheckpointError: it has tensors that our towers lack.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    image = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    text = {
        short: tensor
        for name, tensor in state.items()
        if (short := name.removeprefix("text.")).startswith(_TEXT) and not name.startswith("visual.")
    }
    used = {"logit_scale", "logit_bias", *_NO_TENSORS}
    other = [n for n in state if n not in used and not n.startswith("visual.") and n.removeprefix("text.") not in text]
    if other or not image or "text_projection" not in text or "logit_scale" not in state:
        raise CheckpointError(
            f"got {len(image)} tensors under 'visual.', {len(text)} of a text tower, and others such as {other[:5]}, wanted the "
            "state dict of a CLIP model with a ViT or ResNet and a text transformer. For models with other towers use encoders of "
            "kind open_clip"
        )
    heads = {"text": text.pop("text_projection").T.contiguous()}
    if "proj" in image:
        heads["image"] = image.pop("proj").T.contiguous()
        image = {open_clip_names.from_open_clip_name(name): tensor for name, tensor in image.items()}
    elif "attnpool.c_proj.weight" in image:
        weight = image["attnpool.c_proj.weight"]
        heads["image"] = torch.eye(len(weight), dtype=weight.dtype)
    else:
        raise CheckpointError(f"wanted a ViT or a ModifiedResNet under 'visual.', got names such as {list(image)[:5]}")
    return ClipState(
        image=image,
        text={open_clip_names.from_open_clip_name(name): tensor for name, tensor in text.items()},
        heads=heads,
        logit_scale=state["logit_scale"].reshape(()),
        logit_bias=state["logit_bias"].reshape(()) if "logit_bias" in state else None,
    )


def to_open_clip(state: ClipState, *, custom_text: bool = False) -> State:
    """Convert our tensors to a state dict that open_clip loads strictly; the exact inverse of `from_open_clip`.

    Args:
        state: see `ClipState`.
        custom_text: use the layout of CustomTextCLIP (text tower under `text.`) instead of CLIP's.
    """
    image = visual_to_open_clip(state["image"], state["heads"]["image"])
    text = {open_clip_names.to_open_clip_name(name): tensor for name, tensor in state["text"].items()}
    text["text_projection"] = state["heads"]["text"].T.contiguous()
    prefix = "text." if custom_text else ""
    out = {"logit_scale": state["logit_scale"]}
    if state["logit_bias"] is not None:
        out["logit_bias"] = state["logit_bias"]
    return out | image | {prefix + n: t for n, t in text.items()}


def visual_to_open_clip(image: Mapping[str, Tensor], head: Tensor) -> State:
    """Our picture tower's tensors, and the weight [E, D] of its head, by open_clip's names under `visual.`."""
    image = dict(image)
    if "class_embedding" in image:
        image = {open_clip_names.to_open_clip_name(name): tensor for name, tensor in image.items()}
        image["proj"] = head.T.contiguous()
    elif not (
        head.shape[0] == head.shape[1] and torch.equal(head, torch.eye(len(head), dtype=head.dtype, device=head.device))
    ):
        image["attnpool.c_proj.weight"] = head @ image["attnpool.c_proj.weight"]
        image["attnpool.c_proj.bias"] = head @ image["attnpool.c_proj.bias"]
    return {f"visual.{name}": tensor for name, tensor in image.items()}


def encoder_configs(
    model: Mapping[str, Any], *, mean: ColourValues = OPENAI_MEAN, std: ColourValues = OPENAI_STD
) -> tuple[ImageEncoderConfig, TextTransformerConfig]:
    """Convert an open_clip model configuration ("embed_dim", "vision_cfg", "text_cfg", ...) to configs of our two encoders.

    Raises:
        ValueError: our towers lack a setting; names it.
    """
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    _refuse("vision_cfg", vision, _VISION)
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        raise ValueError(
            f"vision_cfg.pool_type: got {vision['pool_type']!r}, wanted tok or avg, which our vision transformer has"
        )
    if text.pop("pool_type", "argmax") != "argmax" or text.pop("no_causal_mask", False):
        raise ValueError("text_cfg: wanted causal attention and pool_type argmax, which our text transformer has")
    _refuse("text_cfg", text, _TOWER | _TOKENIZER)
    activation: BlockActivation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    pools: dict[str, Literal["cls", "mean"]] = {"tok": "cls", "avg": "mean"}
    size, width, layers = vision.get("image_size", 224), vision.get("width", 768), vision.get("layers", 12)
    head_width = vision.get("head_width", 64)
    image: ImageEncoderConfig
    if isinstance(layers, list | tuple):
        image = ResNetConfig(
            size=size,
            layers=tuple(layers),
            channels=width,
            heads=width * 32 // head_width,
            output_dim=model["embed_dim"],
            mean=mean,
            std=std,
        )
    else:
        image = VisionTransformerConfig(
            size=size,
            patch_size=vision.get("patch_size", 16),
            width=width,
            depth=layers,
            heads=width // head_width,
            mlp_ratio=float(vision.get("mlp_ratio", 4.0)),
            layer_scale=vision.get("ls_init_value"),
            patch_dropout=float(vision.get("patch_dropout", 0.0)),
            norm_eps=_epsilon("vision_cfg", vision),
            pre_norm=not vision.get("no_ln_pre", False),
            pool=pools[vision.get("pool_type", "tok")],
            activation=activation,
            mean=mean,
            std=std,
        )
    return image, TextTransformerConfig(
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        width=text.get("width", 512),
        depth=text.get("layers", 12),
        heads=text.get("heads", 8),
        mlp_ratio=float(text.get("mlp_ratio", 4.0)),
        layer_scale=text.get("ls_init_value"),
        norm_eps=_epsilon("text_cfg", text),
        activation=activation,
    )


def open_clip_config(image: ImageEncoderConfig, text: TextTransformerConfig, embedding: int) -> dict[str, Any]:
    """Convert configs of our two encoders and the embedding size E to open_clip's model configuration; inverts `encoder_configs`.

    Raises:
        ValueError: open_clip's towers lack a setting; names it.
    """
    if text.pool != "eot" or not text.causal:
        raise ValueError("got a text transformer that open_clip does not have, wanted pool: eot and causal: true")
    if not isinstance(image, ResNetConfig) and image.activation != text.activation:
        raise ValueError("got towers that open_clip does not have, wanted the same activation in both")
    tower = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "mlp_ratio": text.mlp_ratio,
        "ls_init_value": text.layer_scale,
        **_norm_settings(text.norm_eps),
    }
    quick = text.activation == "quick_gelu"
    return {"embed_dim": embedding, "quick_gelu": quick, "vision_cfg": vision_settings(image), "text_cfg": tower}


def vision_settings(image: ImageEncoderConfig) -> dict[str, Any]:
    """open_clip's `vision_cfg` of our picture tower.

    Raises:
        ValueError: open_clip's towers lack a setting; names it.
    """
    vision: dict[str, Any] = {"image_size": image.size}
    if isinstance(image, ResNetConfig):
        if image.pool != "attention" or len(image.layers) != 4:
            raise ValueError("got a ResNet that open_clip does not have, wanted four stages and pool: attention")
        vision |= {
            "layers": list(image.layers),
            "width": image.channels,
            "head_width": image.channels * 32 // image.pool_heads,
        }
    else:
        if not image.class_token or image.registers:
            raise ValueError(
                "got a vision transformer that open_clip does not have, wanted class_token: true, registers: 0 and the same "
                "activation in both"
            )
        vision |= {
            "layers": image.depth,
            "width": image.width,
            "patch_size": image.patch_size,
            "head_width": image.width // image.heads,
            "mlp_ratio": image.mlp_ratio,
            "ls_init_value": image.layer_scale,
            "patch_dropout": image.patch_dropout,
            "no_ln_pre": not image.pre_norm,
            "pool_type": {"cls": "tok", "mean": "avg"}[image.pool],
            **_norm_settings(image.norm_eps),
        }
    return vision


def load_open_clip(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    mean: ColourValues = OPENAI_MEAN,
    std: ColourValues = OPENAI_STD,
) -> EmbeddingModel:
    """Load an open_clip model into our encoders: same features, ready for every evaluator.

    Args:
        model: open_clip's model configuration, e.g. `open_clip.get_model_config("ViT-B-32")`.
        state: its state dict, in either layout.
        mean, std: pixel statistics of its training.

    Raises:
        ValueError: our towers lack a setting.
        CheckpointError: the tensors do not match the configuration.
    """
    tensors = from_open_clip(state)
    image, text = encoder_configs(model, mean=mean, std=std)
    encoders: dict[str, Encoder] = {"image": image.build(), "text": text.build()}
    heads: dict[str, nn.Module] = {}
    try:
        encoders["image"].load_state_dict(tensors["image"])
        encoders["text"].load_state_dict(tensors["text"])
    except RuntimeError as error:
        raise CheckpointError(f"the state dict does not match this configuration: {error}") from error
    for modality, weight in tensors["heads"].items():
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        head.load_state_dict({"weight": weight})
        heads[modality] = head
    return EmbeddingModel(encoders, heads)


def _refuse(section: str, settings: Mapping[str, Any], known: set[str]) -> None:
    other = sorted(set(settings) - known)
    if other:
        raise ValueError(f"{section} has {other}, which our towers do not have; use encoders of kind open_clip")


def _epsilon(section: str, settings: Mapping[str, Any]) -> float:
    """What layer norms add to the variance.

    Raises:
        ValueError: norms with other settings.
    """
    given = settings.get("norm_kwargs") or {}
    if set(given) - {"eps"}:
        raise ValueError(
            f"{section}.norm_kwargs: got {sorted(given)}, and our towers have eps; use encoders of kind open_clip"
        )
    return float(given.get("eps", USUAL_EPS))


def _norm_settings(eps: float) -> dict[str, Any]:
    return {} if eps == USUAL_EPS else {"norm_kwargs": {"eps": eps}}
