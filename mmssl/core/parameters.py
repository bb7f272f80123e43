"""Which parameters are decayed, and the rate of each layer of an encoder relative to the last."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mmssl.core.encoder import Encoder

DecayRule = Literal["open_clip_3", "open_clip_4", "all"]

# What open_clip 4 excludes beside the dimension rule: tokens and lookup tables.
_NEVER_DECAYED = (
    "positional_embedding",
    "class_embedding",
    "cls_emb",
    "pos_embed",
    "cls_token",
    "reg_token",
    "registers",
    "dist_token",
    "mask_token",
    "position_embedding.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "embed_positions.weight",
    "relative_attention_bias.weight",
    "relative_position_bias_table",
)


def is_decayed(name: str, parameter: nn.Parameter, rule: DecayRule) -> bool:
    """Whether weight decay applies to a parameter.

    Args:
        name: within its encoder or objective, without the prefix that the learner adds.
        parameter: the parameter.
        rule: "open_clip_3": neither vectors and scalars nor names that hold "bn", "ln", "bias" or "logit_scale"; position
            embeddings are decayed. "open_clip_4": neither vectors and scalars nor tokens and position tables. "all": every one.
    """
    if rule == "all":
        return True
    if rule == "open_clip_3":
        return not (parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale")))
    return not (parameter.ndim < 2 or any(name == end or name.endswith(f".{end}") for end in _NEVER_DECAYED))


def layer_rates(encoder: Encoder, decay: float) -> dict[int, float]:
    """Layer-wise rate decay (BEiT, Bao et al. 2021, arXiv:2106.08254): id of a parameter -> its rate relative to the peak.

    The last layer group has 1, and each one before it `decay` times the rate of the next.

    Raises:
        ValueError: `layers()` of the encoder misses a parameter.
    """
    groups = encoder.layers()
    rates = {id(parameter): decay ** (len(groups) - 1 - i) for i, group in enumerate(groups) for parameter in group}
    missed = [name for name, parameter in encoder.named_parameters() if id(parameter) not in rates]
    if missed:
        raise ValueError(f"{type(encoder).__name__}.layers() must hold every parameter once, and misses {missed}")
    return rates
