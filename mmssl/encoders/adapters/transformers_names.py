"""Names of other libraries' tensors in each other's terms: transformers' CLIP in open_clip's, LAION-CLAP's in transformers'."""

from __future__ import annotations

import re

import torch

from mmssl.encoders.adapters.imagebind_names import imagebind_to_open_clip
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import Translated

_TOWER = re.compile(r"(?P<root>.*?)(?P<tower>vision|text)_model\.(?P<rest>.+)")
# (transformers' name, open_clip's), in both towers of a CLIP model.
_CLIP = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding.", "token_embedding."),
    ("pre_layrnorm.", "ln_pre."),  # spelt so
    ("post_layernorm.", "ln_post."),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    ("encoder.layer.", "transformer.resblocks."),  # of AltCLIP
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_QUERY = ".self_attn.q_proj."
_KEY_OR_VALUE = re.compile(r"\.self_attn\.[kv]_proj\.")

# (LAION-CLAP's name, transformers'), in this order.
_LAION = (
    ("audio_branch.", "audio_model.audio_encoder."),
    ("text_branch.", "text_model."),
    (".attn.", ".attention.self."),
    (".self.proj.", ".output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".bn0.", ".batch_norm."),
    ("_projection.0.", "_projection.linear1."),
    ("_projection.2.", "_projection.linear2."),
)
# Of LAION-CLAP: front-ends, whose filters are settings here, classifiers of AudioSet, and projections that only its losses use.
_LAION_UNUSED = ("spectrogram_extractor.", "logmel_extractor.", "tscam_conv.", "_transform.", ".head.", ".attn_mask")


def clip_to_open_clip(state: State) -> Translated:
    """Tensors of transformers' CLIP (CLIPModel, and towers like its) by open_clip's names; empty for files of other models."""
    made: Translated = {}
    for name, tensor in state.items():
        if name.endswith("visual_projection.weight"):
            made[name.removesuffix("visual_projection.weight") + "visual.proj"] = (tensor.T, (name,))
        elif name.endswith("text_projection.weight") and "text_model." not in name:
            made[name.removesuffix(".weight")] = (tensor.T, (name,))
        elif (match := _TOWER.fullmatch(name)) is not None:
            start = match["root"] + ("visual." if match["tower"] == "vision" else "")
            if _QUERY in name:
                parts = tuple(name.replace(_QUERY, f".self_attn.{letter}_proj.") for letter in "qkv")
                if all(part in state for part in parts):
                    rest = _replaced(match["rest"].replace(_QUERY, ".attn.in_proj_"), _CLIP)
                    made[start + rest] = (torch.cat([state[part] for part in parts]), parts)
            elif not _KEY_OR_VALUE.search(name) and (rest := _replaced(match["rest"], _CLIP)) != match["rest"]:
                made[start + rest] = (tensor, (name,))
    if not any(name.endswith((".conv1.weight", "token_embedding.weight")) for name in made):
        return {}
    beside = ("logit_scale", "logit_bias")
    return made | {name: (tensor, (name,)) for name, tensor in state.items() if name in beside}


def two_towers_to_open_clip(state: State) -> Translated:
    """Tensors of a two-tower model with CLIP's towers (transformers' CLIP, ImageBind) by open_clip's names; else empty."""
    return imagebind_to_open_clip(state) or clip_to_open_clip(state)


def laion_to_transformers(state: State) -> Translated:
    """Tensors of LAION-CLAP by the names of transformers' ClapModel; empty for files of other models."""
    if not any(name.startswith("audio_branch.") for name in state):
        return {}
    made: Translated = {}
    for name, tensor in state.items():
        if any(part in name for part in _LAION_UNUSED):
            continue
        # RoBERTa's names are transformers' already.
        pairs = _LAION if not name.startswith("text_branch.") else _LAION[1:2]
        new = _replaced(name, pairs)
        if ".attention.self.qkv." in new:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                made[new.replace(".qkv.", f".{part}.")] = (rows.clone(), (name,))
        else:
            made[new] = (tensor, (name,))
    return made


def to_transformers_names(state: State) -> Translated:
    """Tensors of LAION-CLAP, or of AltCLIP as it is saved, by the names of transformers' modules; empty for others."""
    renamed = {name: name.replace(".layer.", ".layers.") for name in state if ".layer." in name}
    return laion_to_transformers(state) or {
        renamed.get(name, name): (tensor, (name,)) for name, tensor in state.items() if renamed
    }


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for theirs, ours in pairs:
        name = name.replace(theirs, ours)
    return name
