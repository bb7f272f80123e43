"""Projections, temperature and bias in checkpoints of two-tower models of other libraries."""

from __future__ import annotations

from mmssl.encoders.adapters.transformers_names import two_towers_to_open_clip
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import Translated

# Name in a checkpoint -> what it is. LAION-CLAP and ClapModel have a scale for each direction.
_PARTS = {
    "visual.proj": "image",
    "text_projection": "text",
    "logit_scale": "logit_scale",
    "logit_scale_a": "logit_scale",
    "logit_bias": "logit_bias",
}


def shared_space(state: State) -> Translated:
    """The tensors of the shared space in a checkpoint of open_clip or transformers, of CLIP, SigLIP, CLAP and similar models.

    Returns:
        "image", "text" -> weight [E, D] of the linear projection; "logit_scale" (logarithm) and "logit_bias" -> []; each with the
        names in the file that it is made of. Without those that the model does not have. Of a model and its average the average.
    """
    named: Translated = two_towers_to_open_clip(state) or {name: (tensor, (name,)) for name, tensor in state.items()}
    found: Translated = {}
    for name in sorted(named, key=_averaged_first):
        tensor, names = named[name]
        part = next((part for end, part in _PARTS.items() if name == end or name.endswith(f".{end}")), None)
        if part is None or part in found:
            continue
        if part.startswith("logit"):
            if tensor.numel() == 1:
                found[part] = (tensor.reshape(()), names)
        elif tensor.ndim == 2:
            found[part] = (tensor.T.contiguous(), names)
    return found


def _averaged_first(name: str) -> tuple[bool, int]:
    return "ema" not in name.replace("_", ".").split("."), len(name)
