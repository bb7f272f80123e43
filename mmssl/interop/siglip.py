"""open_clip's SigLIP (a ViT of timm with an attention pool, and a text transformer) as transformers' `SiglipModel`.

The library's defaults are not what open_clip has (its activation is gelu_pytorch_tanh): activations and epsilons are read off the
modules and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.interop.towers import Towers

# Names in open_clip -> in SiglipModel, of blocks and of the pool.
_ATTENTION_OUT = "self_attn.out_proj"
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": _ATTENTION_OUT,
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": _ATTENTION_OUT,
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_POOL = {"proj": "attention.out_proj", "norm": "layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def siglip_model(towers: Towers) -> Any:
    """A `SiglipModel` with the weights of two towers of open_clip.

    Raises:
        ValueError: SiglipModel's towers lack a part; names it.
    """
    from transformers import SiglipConfig, SiglipModel

    image, text = (towers.encoder(name).model for name in (towers.first, towers.text))
    for name in (towers.first, towers.text):
        if not towers.ends_in_space(name):
            raise ValueError(
                f"heads of {name}: wanted kind: identity behind a tower of open_clip, which ends in a projection"
            )
    config = SiglipConfig(vision_config=_vision_config(towers, image), text_config=_text_config(towers, text))
    model = SiglipModel(config)
    tensors = dict(_vision(image.trunk)) | dict(_text(text))
    beside = {name: x for name, x in model.state_dict().items() if name.startswith("logit_")}
    model.load_state_dict({name: x.detach().clone() for name, x in tensors.items()} | beside)
    return model


def _vision_config(towers: Towers, image: Any) -> dict[str, Any]:
    trunk: Any = getattr(image, "trunk", None)  # of timm
    if type(trunk).__name__ != "VisionTransformer" or not hasattr(trunk.attn_pool, "latent"):
        raise ValueError(
            f"encoders.{towers.first}: SiglipModel has a ViT that is pooled by attention (timm_pool: map), and this model has a "
            f"{type(trunk or image).__name__} with another pool; export --to onnx or safetensors"
        )
    block: Any = trunk.blocks[0]
    pool: Any = trunk.attn_pool
    _refuse(
        f"encoders.{towers.first}",
        {
            "a class token": trunk.has_class_token,
            "register tokens": bool(trunk.num_reg_tokens),
            "a norm before the blocks": not isinstance(trunk.norm_pre, nn.Identity),
            "a norm after the pool": not isinstance(trunk.fc_norm, nn.Identity),
            "layer scale": not isinstance(block.ls1, nn.Identity),
            "normalised queries": not isinstance(block.attn.q_norm, nn.Identity),
            "no final norm": isinstance(trunk.norm, nn.Identity),
            "a second projection": any(True for _ in image.head.parameters())
            or any(True for _ in trunk.head.parameters()),
            "another number of heads in its pool": pool.num_heads != block.attn.num_heads,
            "several queries in its pool": pool.latent_len != 1,
        },
    )
    norms = [block.norm1, trunk.norm, pool.norm]
    return {
        "hidden_size": trunk.embed_dim,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "hidden_act": _one(towers.first, "activation", [_activation(mlp.act) for mlp in (block.mlp, pool.mlp)]),
        "layer_norm_eps": _one(towers.first, "epsilon", [norm.eps for norm in norms]),
    }


def _text_config(towers: Towers, text: Any) -> dict[str, Any]:
    block = text.transformer.resblocks[0] if hasattr(text, "token_embedding") else None
    if block is None:
        raise ValueError(
            f"encoders.{towers.text}: SiglipModel has a text transformer, and this is a {type(text).__name__}"
        )
    _refuse(
        f"encoders.{towers.text}",
        {
            "a causal mask": text.attn_mask is not None,
            f"pool_type {text.pool_type}": text.pool_type != "last",
            "a class token": text.cls_emb is not None,
            "no projection": text.text_projection is None,
            "layer scale": not isinstance(block.ls_1, nn.Identity),
        },
    )
    projection = text.text_projection
    return {
        "hidden_size": text.width,
        "num_hidden_layers": len(text.transformer.resblocks),
        "num_attention_heads": text.heads,
        "intermediate_size": block.mlp.c_fc.out_features,
        "max_position_embeddings": text.num_pos,
        "vocab_size": text.vocab_size,
        "projection_size": len(projection.weight) if isinstance(projection, nn.Linear) else projection.shape[1],
        "hidden_act": _activation(block.mlp.gelu),
        "layer_norm_eps": _one(towers.text, "epsilon", [norm.eps for norm in (block.ln_1, block.ln_2, text.ln_final)]),
        "pad_token_id": text.pad_id,
    }


def _vision(trunk: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the names of SiglipModel's vision model."""
    top = "vision_model."
    yield f"{top}embeddings.position_embedding.weight", trunk.pos_embed[0]
    yield from _named(trunk.patch_embed.proj, f"{top}embeddings.patch_embedding")
    yield from _named(trunk.norm, f"{top}post_layernorm")
    for number, block in enumerate(trunk.blocks):
        place = f"{top}encoder.layers.{number}"
        yield from _split(block.attn.qkv.weight, block.attn.qkv.bias, place)
        for theirs, name in _BLOCK.items():
            yield from _named(block.get_submodule(theirs), f"{place}.{name}")
    pool = trunk.attn_pool
    yield f"{top}head.probe", pool.latent
    for end in ("weight", "bias"):
        joined = torch.cat([getattr(pool.q, end), getattr(pool.kv, end)])
        yield f"{top}head.attention.in_proj_{end}", joined
    for theirs, name in _POOL.items():
        yield from _named(pool.get_submodule(theirs), f"{top}head.{name}")


def _text(text: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the names of SiglipModel's text model."""
    top = "text_model."
    yield f"{top}embeddings.token_embedding.weight", text.token_embedding.weight
    yield f"{top}embeddings.position_embedding.weight", text.positional_embedding
    for number, block in enumerate(text.transformer.resblocks):
        place = f"{top}encoder.layers.{number}"
        yield from _split(block.attn.in_proj_weight, block.attn.in_proj_bias, place)
        for theirs, name in _TEXT_BLOCK.items():
            yield from _named(block.get_submodule(theirs), f"{place}.{name}")
    yield from _named(text.ln_final, f"{top}final_layer_norm")
    head = text.text_projection
    linear = isinstance(head, nn.Linear)
    yield f"{top}head.weight", head.weight if linear else head.T
    yield f"{top}head.bias", head.bias if linear else torch.zeros(head.shape[1])


def _named(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    for end, tensor in module.state_dict().items():
        yield f"{name}.{end}", tensor


def _split(weight: Tensor, bias: Tensor, place: str) -> Iterator[tuple[str, Tensor]]:
    """Packed queries, keys and values as three layers."""
    for letter, rows, shifts in zip("qkv", weight.chunk(3), bias.chunk(3), strict=True):
        yield f"{place}.self_attn.{letter}_proj.weight", rows
        yield f"{place}.self_attn.{letter}_proj.bias", shifts


def _activation(module: nn.Module) -> str:
    """transformers' name of an activation.

    Raises:
        ValueError: none is known.
    """
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    names = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}
    if type(module).__name__ not in names:
        raise ValueError(f"got the activation {type(module).__name__}, wanted one of {', '.join(names)}")
    return names[type(module).__name__]


def _one(modality: str, what: str, values: list[Any]) -> Any:
    """The value that all parts share.

    Raises:
        ValueError: they differ.
    """
    if len(set(values)) != 1:
        raise ValueError(
            f"encoders.{modality}: SiglipModel has one {what} in a tower, and this one has {sorted(set(values))}"
        )
    return values[0]


def _refuse(where: str, parts: dict[str, bool]) -> None:
    """Refuse what SiglipModel lacks."""
    if found := [name for name, there in parts.items() if there]:
        raise ValueError(
            f"{where}: SiglipModel has another tower than one with {', '.join(found)}; export --to onnx or safetensors"
        )
