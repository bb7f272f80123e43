"""Names of the tensors of ImageBind (arXiv:2305.05665) in open_clip's terms, for the two towers that are CLIP's.

Its picture tower sees two frames: a still picture is shown twice, so the filters of its patch embedding are summed over time.
"""

from __future__ import annotations

import math

from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import Translated

TRUNKS = "modality_trunks."
EXTRA = "attn.bias_k"
"""End of the name of a learned key, which only the towers of ImageBind's other modalities have."""
_MAX_SCALE = 100.0

# (ImageBind's name, open_clip's), after the name of the modality.
_TOWER = (
    ("blocks.", "transformer.resblocks."),
    (".norm_1.", ".ln_1."),
    (".norm_2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("pre_transformer_layer.0.", "ln_pre."),
)
_STEM = "modality_preprocessors.vision."
_WORDS = "modality_preprocessors.text."
_FIXED = {
    f"{_STEM}cls_token": "visual.class_embedding",
    f"{_STEM}pos_embedding_helper.pos_embed": "visual.positional_embedding",
    f"{_STEM}rgbt_stem.proj.1.weight": "visual.conv1.weight",
    "modality_heads.vision.0.weight": "visual.ln_post.weight",
    "modality_heads.vision.0.bias": "visual.ln_post.bias",
    "modality_heads.vision.2.weight": "visual.proj",
    f"{_WORDS}token_embedding.weight": "token_embedding.weight",
    f"{_WORDS}pos_embed": "positional_embedding",
    "modality_heads.text.proj.0.weight": "ln_final.weight",
    "modality_heads.text.proj.0.bias": "ln_final.bias",
    "modality_heads.text.proj.1.weight": "text_projection",
    "modality_postprocessors.text.1.log_logit_scale": "logit_scale",
}


def is_imagebind(state: State) -> bool:
    """Whether a file holds ImageBind."""
    return any(name.startswith(f"{TRUNKS}vision.") for name in state)


def imagebind_to_open_clip(state: State) -> Translated:
    """Tensors of ImageBind's towers of pictures and of texts by open_clip's names; empty for files of other models."""
    if not is_imagebind(state):
        return {}
    made: Translated = {}
    for name, tensor in state.items():
        if name in _FIXED:
            made[_FIXED[name]] = (_shaped(_FIXED[name], tensor), (name,))
            continue
        for modality, root in (("vision", "visual."), ("text", "")):
            if name.startswith(start := f"{TRUNKS}{modality}."):
                new = name.removeprefix(start)
                for theirs, ours in _TOWER:
                    new = new.replace(theirs, ours)
                made[root + new] = (tensor, (name,))
    return made


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """A tensor in the shape that open_clip has."""
    if name == "visual.conv1.weight":
        return tensor.sum(2) if tensor.ndim == 5 else tensor
    if name in ("visual.proj", "text_projection"):
        return tensor.T
    if name == "logit_scale":
        return tensor.reshape(()).clamp(max=math.log(_MAX_SCALE))
    if name == "visual.class_embedding":
        return tensor.flatten()
    return tensor[0] if name.endswith("positional_embedding") else tensor


def refuse_imagebind(state: State) -> Translated:
    """Refuse ImageBind's sounds for our audio transformer; nothing for files of other models.

    Raises:
        CheckpointError: names what its towers have beyond ours.
    """
    names = [name for name in state if name.startswith(f"{TRUNKS}audio.") and name.endswith(EXTRA)]
    if names:
        raise CheckpointError(
            f"got ImageBind's audio tower, whose attention has a learned key and value in every block ({names[0]}, bias_v, ...), a "
            "norm behind its patch embedding and overlapping patches, which audio_transformer lacks; its towers of pictures and of "
            "texts fit vit and text_transformer"
        )
    return {}
