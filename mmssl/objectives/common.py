"""Helpers of every objective: the base config, look-up of views and encoders, casts to float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import AfterValidator, StringConstraints
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, view_names
from mmssl.core.batch_norm import GlobalBatchNorm
from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.errors import did_you_mean
from mmssl.core.forward import Network
from mmssl.core.objective import Latents, Objective
from mmssl.core.plan import Plan

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of a modality or child: a plain word, because it is part of parameter names, where dots, dashes and slashes separate."""


def _two_kinds(view: str | tuple[str, str]) -> str | tuple[str, str]:
    if not isinstance(view, str) and view[0] == view[1]:
        raise ValueError(f"got {list(view)}, wanted two different kinds; {view[0]!r} alone gives two views of one kind")
    return view


TwoViews = Annotated[str | tuple[str, str], AfterValidator(_two_kinds)]
"""Two views of a sample: of one kind, `crop`, or one of each of two kinds, `[crop, crop_b]`, for asymmetric augmentation."""


class ObjectiveConfig(Config, ABC):
    """Base of objective configs: each adds `kind: Literal[...]` and builds its module."""

    @abstractmethod
    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> Objective:
        """Build the objective for these encoders (modality -> encoder); it reads their sizes and does not keep them.

        `plan` turns schedules into functions of the step (`plan.schedule(self.momentum, "momentum")`) and has the sizes of the run.

        Raises:
            ValueError: an encoder is missing or unsuitable; says which and what to change.
        """


def encoder_of(encoders: Mapping[str, Encoder], modality: str) -> Encoder:
    """Look up the encoder of a modality.

    Raises:
        ValueError: the modality has no encoder.
    """
    if modality not in encoders:
        raise ValueError(
            f"objective needs an encoder for {modality!r}, and the recipe has {sorted(encoders)}{did_you_mean(modality, encoders)}"
        )
    return encoders[modality]


def couples_rows(module: nn.Module) -> bool:
    """Whether a head normalises by the statistics of the batch."""
    return any(isinstance(part, GlobalBatchNorm) for part in module.modules())


def encode_two_views(
    batch: Batch,
    ctx: StepContext,
    modality: str,
    view: TwoViews,
    *,
    network: Network = "student",
    together: bool = False,
) -> Latents:
    """Pooled features [B, D] of two views, "0" and "1", and "present" where samples may lack the modality.

    Args:
        batch: of this step.
        ctx: of this step.
        modality: of the encoder.
        view: kind of both, or the kind of each.
        network: the encoder or its teacher.
        together: one forward pass for both (SimCLR); False: one each, so that batch norm in the encoder sees one view at a time,
            as Barlow Twins, VICReg and SimSiam define it.
    """
    both = ctx.features(batch, modality, names_of(view), network=network, pooled_only=True, together=together)
    return {"0": both[0].pooled, "1": both[1].pooled, **ctx.presence(batch, modality)}


def kinds_of(view: TwoViews) -> dict[str, int]:
    """Kind -> count of two views, for `Objective.needs`."""
    return {view: 2} if isinstance(view, str) else dict.fromkeys(view, 1)


def names_of(view: TwoViews) -> list[str]:
    """Names of the two views."""
    return [name for kind, count in kinds_of(view).items() for name in view_names(kind, count)]


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to float32; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


def log_sum_exp_over_processes(x: Tensor) -> Tensor:
    """All-reduce by log-sum-exp of [G] numbers, element by element, with gradient."""
    return torch.logsumexp(distributed.gather(x[None]), 0)


def equal_count(masks: Tensor, kind: str) -> int:
    """The number of places of each mask [n, M, T].

    Raises:
        ValueError: they have different numbers.
    """
    if not len(masks):  # all samples lack the modality, and what is encoded has no effect
        return 1
    least, most = torch.stack(masks.sum(-1).aminmax()).tolist()
    if least != most:
        raise ValueError(f"got masks of kind {kind!r} of {least} to {most} tokens, wanted equal numbers in all samples")
    return int(most)
