"""The optimizer (AdamW, SGD or LARS) over the parameter groups of a learner, and its rate and weight decay at each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mmssl.core.config import Config
from mmssl.core.encoder import Encoder
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.objective import Learner, ParameterRule
from mmssl.core.parameters import DecayRule, is_decayed, layer_rates
from mmssl.core.plan import Plan
from mmssl.core.schedules import Bounds, Schedule, Scheduled
from mmssl.training.steps.groups import parameter_rules, trainable_parts
from mmssl.training.steps.lars import Lars

WeightDecay = Annotated[Scheduled, Bounds(ge=0)]


class OptimizerConfig(Config, ABC):
    """Base of optimizers: rate, weight decay, and which parameters have another rate or no decay.

    Attributes:
        lr: peak rate.
        weight_decay: weight decay of the parameters that `decay_rule` takes; a number, or a schedule.
        decay_rule: which parameters are decayed: "open_clip_3": neither vectors and scalars nor names that hold "bn", "ln", "bias"
            or "logit_scale"; "open_clip_4": neither vectors and scalars nor tokens and position tables; "all": every parameter.
        layer_decay: rate of a layer group over that of the next one towards the output; the last group of each encoder and
            the objective have the full rate (BEiT, Bao et al. 2021).
        encoder_lr: modality -> multiplier of the rate of its encoder.
    """

    kind: str
    lr: float = Field(gt=0)
    weight_decay: WeightDecay = 0.0
    decay_rule: DecayRule = "open_clip_3"
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    encoder_lr: dict[str, float] = Field(default_factory=dict)

    @abstractmethod
    def build(self, learner: Learner) -> Optimizer:
        """The optimizer over `groups`.

        Raises:
            RecipeError: see `check`.
        """

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

    def groups(self, learner: Learner) -> list[dict[str, Any]]:
        """Named parameter groups of the learner's trainable parameters, as `Optimizer` takes them.

        Each holds "name", "params" with names, "lr_scale" (rate relative to the peak), "constant_rate" (whether it stays there),
        "decayed" (whether weight decay applies), "adapted" (whether `decay_rule` takes its parameters), and "weight_decay", which
        `UpdateSchedule` changes.

        Raises:
            RecipeError: see `check`.
        """
        self.check(learner)
        start = Plan.unknown().schedule(self.weight_decay, "weight_decay").start
        rules = {f"objective.{name}": entry for name, entry in parameter_rules(learner.objective).items()}
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for part, named in trainable_parts(learner).items():
            scales = self._scales(part, learner)
            for name, parameter in named:
                prefix, rule = rules.get(f"{part}.{name}", ("", ParameterRule()))
                scale = scales.get(id(parameter), 1.0) * rule.rate
                adapted = is_decayed(name, parameter, self.decay_rule)
                decayed = adapted and rule.weight_decay
                words = (part, prefix, "decay" if decayed else "no_decay", f"x{scale:.6g}" if scale != 1 else "")
                label = "/".join(filter(None, words))
                group = {
                    "name": label,
                    "lr_scale": scale,
                    "constant_rate": rule.constant_rate,
                    "decayed": decayed,
                    "adapted": adapted,
                    "weight_decay": start if decayed else 0.0,
                }
                held = groups.setdefault((label, adapted), {**group, "params": []})
                held["params"].append((f"{part}.{name}", parameter))
        return list(groups.values())

    def _scales(self, part: str, learner: Learner) -> dict[int, float]:
        """id of a parameter -> its rate relative to the peak; 1 if missing."""
        if part not in learner.encoders:
            return {}
        encoder = learner.encoders[part]
        multiplier = self.encoder_lr.get(part, 1.0)
        scales = {id(parameter): multiplier for parameter in encoder.parameters()}
        if self.layer_decay is not None:
            assert isinstance(encoder, Encoder)
            rates = layer_rates(encoder, self.layer_decay)
            scales = {key: scale * rates[key] for key, scale in scales.items()}
        return scales


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019) with open_clip's defaults for vision transformers.

    Attributes:
        weight_decay: decoupled weight decay, times the rate, of the parameters that `decay_rule` takes; a number, or a schedule.
        betas: decay rates of the running means of the gradient and of its square.
        eps: added to the denominator of an update.
        fused: one kernel for the whole update; faster, equal up to rounding.
    """

    kind: Literal["adamw"] = "adamw"
    weight_decay: WeightDecay = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    fused: bool = True

    @field_validator("betas")
    @classmethod
    def _betas_are_fractions(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"got betas {list(betas)}, wanted two numbers from 0 to below 1")
        return betas

    def build(self, learner: Learner) -> Optimizer:
        """See the base."""
        return torch.optim.AdamW(
            self.groups(learner), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=0.0, fused=self.fused
        )


class SgdConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum (`torch.optim.SGD`).

    Attributes:
        weight_decay: weight decay, added to the gradient, of the parameters that `decay_rule` takes; a number, or a schedule.
        momentum: share of the last update that is added to the gradient.
        nesterov: look one step of the momentum ahead (Nesterov).
    """

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov: got true without momentum, where it has no effect: set `momentum`, or remove it"
            )
        return self

    def build(self, learner: Learner) -> Optimizer:
        """See the base."""
        fused = not any(
            isinstance(parameter, DTensor) for parameter in learner.parameters()
        )  # torch has no such kernel
        optimizer = torch.optim.SGD(
            self.groups(learner), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused
        )
        if self.momentum:  # torch makes them at the first step, and leaves them undefined where that is skipped
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class LarsConfig(OptimizerConfig):
    """LARS (You et al. 2017), for large batches of networks with batch normalisation; see `Lars`.

    Parameters that `decay_rule` does not take are neither decayed nor scaled by norms: vectors, biases, normalisation.

    Attributes:
        weight_decay: weight decay, added to the gradient, of the parameters that `decay_rule` takes; a number, or a schedule.
        momentum: share of the last update that is kept.
        trust: norm of an update with rate 1, as a share of the norm of the tensor.
        vector_lr: multiplier of the rate of the parameters that `decay_rule` does not take. Barlow Twins: 0.024.
    """

    kind: Literal["lars"] = "lars"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    trust: float = Field(default=0.001, gt=0)
    vector_lr: float = Field(default=1.0, gt=0)

    def build(self, learner: Learner) -> Optimizer:
        """See the base."""
        groups = [
            {**group, "lr_scale": group["lr_scale"] * (1 if group["adapted"] else self.vector_lr)}
            for group in self.groups(learner)
        ]
        return Lars(groups, self.lr, self.momentum, self.trust)


OptimizerUnion = Annotated[AdamWConfig | SgdConfig | LarsConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class UpdateSchedule:
    """Learning rate and weight decay of an optimizer at each step.

    Attributes:
        rate: learning rate as a share of the peak.
        weight_decay: weight decay of the groups that are decayed.
    """

    rate: Schedule
    weight_decay: Schedule

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set each group's rate to peak * rate * "lr_scale", and its weight decay, for a 0-based step."""
        peak, share, decay = float(optimizer.defaults["lr"]), self.rate(step), self.weight_decay(step)
        for group in optimizer.param_groups:
            group["lr"] = peak * (1.0 if group["constant_rate"] else share) * group["lr_scale"]
            group["weight_decay"] = decay if group["decayed"] else 0.0

    def describe(self, optimizer: Optimizer) -> str:
        """One line for each parameter group, for the log."""
        lines = [
            f"{group['name']}: {len(group['params'])} tensors, {sum(p.numel() for p in group['params']):,} parameters, "
            f"{'constant' if group['constant_rate'] else 'peak'} lr {optimizer.defaults['lr'] * group['lr_scale']:.3g}, "
            f"weight decay {self.weight_decay if group['decayed'] else 0}"
            for group in optimizer.param_groups
        ]
        return "\n".join(lines)


def current_rate(optimizer: Optimizer) -> float:
    """The learning rate of the last step where nothing multiplies it."""
    groups = optimizer.param_groups
    usual = next((group for group in groups if not group["constant_rate"]), groups[0])
    return float(usual["lr"] / usual["lr_scale"])
