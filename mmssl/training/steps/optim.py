"""The optimizer (AdamW), its parameter groups, and the learning rate of each step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.optim import Optimizer

from mmssl.core.config import Config
from mmssl.core.encoder import Encoder
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.objective import Learner

DecayRule = Literal["open_clip_3", "open_clip_4"]
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
            embeddings are decayed. "open_clip_4": neither vectors and scalars nor tokens and position tables.
    """
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


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019) with open_clip's defaults for vision transformers.

    Attributes:
        lr: peak rate.
        betas: decay rates of the running means of the gradient and of its square.
        eps: added to the denominator of an update.
        weight_decay: decoupled weight decay, times the rate, of the parameters that `decay_rule` takes.
        decay_rule: which parameters are decayed: "open_clip_3": neither vectors and scalars nor names that hold "bn", "ln", "bias"
            or "logit_scale"; "open_clip_4": neither vectors and scalars nor tokens and position tables.
        layer_decay: rate of a layer group over that of the next one towards the output; the last group of each encoder and
            the objective have the full rate (BEiT, Bao et al. 2021).
        encoder_lr: modality -> multiplier of the rate of its encoder.
        fused: one kernel for the whole update; faster, equal up to rounding.
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.2, ge=0)
    decay_rule: DecayRule = "open_clip_3"
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    encoder_lr: dict[str, float] = Field(default_factory=dict)
    fused: bool = True

    @field_validator("betas")
    @classmethod
    def _betas_are_fractions(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"got betas {list(betas)}, wanted two numbers from 0 to below 1")
        return betas

    @field_validator("encoder_lr")
    @classmethod
    def _multipliers_are_positive(cls, multipliers: dict[str, float]) -> dict[str, float]:
        wrong = {name: value for name, value in multipliers.items() if value <= 0}
        if wrong:
            raise ValueError(f"got multipliers {wrong}, wanted positive ones; to freeze an encoder, set `frozen`")
        return multipliers

    def check(self, learner: Learner) -> None:
        """Raise an error for options without effect.

        Raises:
            RecipeError: nothing is trainable; an option names missing or frozen encoders.
        """
        trainable = {part: bool(parameters) for part, parameters in trainable_parts(learner).items()}
        if not any(trainable.values()):
            raise RecipeError("nothing to train: every encoder is frozen and the objective has no parameters")
        encoders = {name: trainable[name] for name in learner.encoders}
        if self.layer_decay is not None and not any(encoders.values()):
            raise RecipeError("optimizer.layer_decay has no effect: every encoder is frozen; remove it or unfreeze one")
        for name in self.encoder_lr:
            if name not in encoders:
                raise RecipeError(
                    f"optimizer.encoder_lr names {name!r}, and the encoders are {sorted(encoders)}"
                    f"{did_you_mean(name, encoders)}"
                )
            if not encoders[name]:
                raise RecipeError(
                    f"optimizer.encoder_lr.{name} has no effect: that encoder is frozen; remove one of the two"
                )

    def build(self, learner: Learner) -> Optimizer:
        """The optimizer over the learner's trainable parameters, in named groups.

        Each group holds "name", "lr_scale" (rate relative to the peak), "param_names" and what AdamW wants.

        Raises:
            RecipeError: see `check`.
        """
        self.check(learner)
        groups: dict[str, dict[str, Any]] = {}
        for part, named in trainable_parts(learner).items():
            scales = self._scales(part, learner)
            for name, parameter in named:
                scale, decayed = scales.get(id(parameter), 1.0), is_decayed(name, parameter, self.decay_rule)
                label = f"{part}/{'decay' if decayed else 'no_decay'}" + (f"/x{scale:.6g}" if scale != 1 else "")
                decay = self.weight_decay if decayed else 0.0
                group = groups.setdefault(
                    label, {"name": label, "lr_scale": scale, "weight_decay": decay, "params": []}
                )
                group["params"].append((f"{part}.{name}", parameter))
        return torch.optim.AdamW(
            list(groups.values()), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=0.0, fused=self.fused
        )

    def _scales(self, part: str, learner: Learner) -> dict[int, float]:
        """id of a parameter -> its rate relative to the peak; 1 if missing."""
        if part not in learner.encoders:
            return {}
        encoder = learner.encoders[part]
        multiplier = self.encoder_lr.get(part, 1.0)
        scales = {id(parameter): multiplier for parameter in encoder.parameters()}
        if self.layer_decay is not None:
            assert isinstance(encoder, Encoder)
            groups = encoder.layers()
            depth = {id(parameter): len(groups) - 1 - i for i, group in enumerate(groups) for parameter in group}
            missed = [name for name, parameter in encoder.named_parameters() if id(parameter) not in depth]
            if missed:
                raise ValueError(
                    f"{type(encoder).__name__}.layers() must hold every parameter once, and misses {missed}"
                )
            scales = {key: scale * self.layer_decay ** depth[key] for key, scale in scales.items()}
        return scales


OptimizerConfig = AdamWConfig


def describe_groups(optimizer: Optimizer) -> str:
    """One line for each parameter group, for the log."""
    lines = [
        f"{group['name']}: {len(group['params'])} tensors, {sum(p.numel() for p in group['params']):,} parameters, "
        f"peak lr {optimizer.defaults['lr'] * group['lr_scale']:.3g}, weight decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    ]
    return "\n".join(lines)


def set_rate(optimizer: Optimizer, factor: float) -> float:
    """Set each group's rate to peak * factor * lr_scale; returns peak * factor."""
    rate = float(optimizer.defaults["lr"]) * factor
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
