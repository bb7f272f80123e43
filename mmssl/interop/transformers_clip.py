"""Our vision and text transformers as transformers' `CLIPModel`.

Packed queries, keys and values become three layers; both activations are written, because the library's default is another
(quick_gelu).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from mmssl.data.modalities.tokenizers import ClipTokenizer
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.interop.clip_parts import ClipParts, clip_parts
from mmssl.interop.towers import Towers
from mmssl.interop.transformers_processor import CLIP_WORDS, tokenizer_of

_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.out": "self_attn.out_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "norm_post": "post_layernorm",
}
_TEXT = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "norm_final": "final_layer_norm",
}


def clip_model(towers: Towers) -> Any:
    """A `CLIPModel` with the weights of our towers.

    Raises:
        ValueError: CLIPModel's towers lack a setting; names it.
    """
    parts = clip_parts(towers)
    if not isinstance(tokenizer_of(towers), ClipTokenizer):
        raise ValueError(f"modalities.{towers.text}: wanted CLIP's tokenizer, and this model has another")
    model = CLIPModel(CLIPConfig(**_config(towers, parts)))
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in to_transformers(parts).items()})
    return model


def _config(towers: Towers, parts: ClipParts) -> dict[str, Any]:
    """Settings of `CLIPConfig`.

    Raises:
        ValueError: CLIPModel's towers lack a setting; names it.
    """
    image, text = parts.image_config, parts.text_config
    if not isinstance(image, VisionTransformerConfig):
        raise ValueError(
            "got a residual network, wanted encoders of kind vit and text_transformer, which CLIPModel has"
        )
    wrong = {
        f"{towers.first}: class_token": not image.class_token,
        f"{towers.first}: pool": image.pool != "cls",
        f"{towers.first}: pre_norm": not image.pre_norm,
        f"{towers.first}: layer_scale": image.layer_scale is not None,
        f"{towers.first}: registers": image.registers > 0,
        f"{towers.first}: mean": len(image.mean) != 3,
        f"{towers.text}: layer_scale": text.layer_scale is not None,
        f"{towers.text}: pool": text.pool != "eot",
        f"{towers.text}: causal": not text.causal,
        f"{towers.text}: vocab_size": text.vocab_size != CLIP_WORDS,
    }
    if found := [name for name, bad in wrong.items() if bad]:
        raise ValueError(
            f"encoders.{found[0]}: CLIPModel has another; wanted class_token: true, pool: cls, pre_norm: true, no layer_scale, "
            f"no registers, three channels, and a causal text tower with pool: eot and vocab_size: {CLIP_WORDS}"
        )
    size = len(parts.state["heads"]["text"])
    return {
        "projection_dim": size,
        "logit_scale_init_value": float(parts.state["logit_scale"]),
        "vision_config": {
            **_tower(image.width, image.depth, image.heads, image.mlp_ratio, image.activation, size, image.norm_eps),
            "image_size": image.size,
            "patch_size": image.patch_size,
        },
        "text_config": {
            **_tower(text.width, text.depth, text.heads, text.mlp_ratio, text.activation, size, text.norm_eps),
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": CLIP_WORDS - 2,
            "eos_token_id": CLIP_WORDS - 1,
            "pad_token_id": CLIP_WORDS - 1,
        },
    }


def _tower(
    width: int, depth: int, heads: int, ratio: float, activation: str, projection: int, eps: float
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": int(width * ratio),
        "hidden_act": activation,
        "layer_norm_eps": eps,
        "projection_dim": projection,
    }


def to_transformers(parts: ClipParts) -> dict[str, Tensor]:
    """Tensors by the names of `CLIPModel`."""
    state = parts.state
    return {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["heads"]["image"],
        "text_projection.weight": state["heads"]["text"],
        **_renamed("vision_model", state["image"], _VISION),
        **_renamed("text_model", state["text"], _TEXT),
    }


def _renamed(tower: str, state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            stem, _, end = rest.rpartition(".")
            place = f"{tower}.encoder.layers.{number}"
            if stem == "attention.qkv":
                for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                    made[f"{place}.self_attn.{letter}_proj.{end}"] = part
            else:
                made[f"{place}.{_BLOCK[stem]}.{end}"] = tensor
        elif name in names:
            made[f"{tower}.{names[name]}"] = tensor
        else:
            stem, _, end = name.rpartition(".")
            made[f"{tower}.{names[stem]}.{end}"] = tensor
    return made
