"""Parameter groups of an optimizer: which parameters are trained, and which of them are decayed."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mmssl.core.objective import Learner, Objective, ParameterRule

DecayRule = Literal["open_clip_3", "open_clip_4", "all"]
PartParameters = dict[str, list[tuple[str, nn.Parameter]]]

# What open_clip 4 excludes beside the dimension rule: tokens and lookup tables.
_NEVER_DECAYED = (
    "positional_embedding",
    "class_embedding",
    "cls_emb",
    "pos_embed",
    "cls_token",
    "reg_token",
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


def trainable_parts(learner: Learner) -> PartParameters:
    """Trainable parameters by part: one for each encoder, named by its modality, and "objective".

    A shared parameter belongs to the first part.
    """
    modules: dict[str, nn.Module] = {**dict(learner.encoders.items()), "objective": learner.objective}
    found: PartParameters = {part: [] for part in modules}
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[part].append((name, parameter))
    return found


def parameter_rules(objective: Objective) -> dict[str, tuple[str, ParameterRule]]:
    """Name of a parameter of the objective -> the entry of its `parameter_groups` that counts for it, if there is one.

    Raises:
        ValueError: an entry fits no parameter.
    """
    rules = sorted(objective.parameter_groups().items(), key=lambda entry: len(entry[0]))
    names = [name for name, _ in objective.named_parameters()]
    found: dict[str, tuple[str, ParameterRule]] = {}
    for prefix, rule in rules:
        fitting = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
        if not fitting:
            raise ValueError(
                f"{type(objective).__name__}.parameter_groups(): got {prefix!r}, wanted the beginning of a parameter's name, "
                f"which are {names}"
            )
        found |= dict.fromkeys(fitting, (prefix, rule))
    return found
