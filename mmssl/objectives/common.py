"""Helpers of every objective: the base config, look-up of views and encoders, casts to float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import StringConstraints
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.config import Config
from mmssl.core.encoder import Encoder
from mmssl.core.errors import did_you_mean
from mmssl.core.objective import Latents, Objective, StepContext

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of a modality or child: a plain word, because it is part of parameter names, where dots, dashes and slashes separate."""


class ObjectiveConfig(Config, ABC):
    """Base of objective configs: each adds `kind: Literal[...]` and builds its module."""

    @abstractmethod
    def build(self, encoders: Mapping[str, Encoder]) -> Objective:
        """Build the objective for these encoders (modality -> encoder); it reads their sizes and does not keep them.

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


def view_of(batch: Batch, modality: str, name: str, *, absent: bool = False) -> Tensor:
    """Look up the view [B, ...] of a modality in a batch, e.g. "crop0".

    Args:
        batch: the batch.
        modality: name of the modality.
        name: kind and number.
        absent: allow samples without the modality, whose rows are blank.

    Raises:
        ValueError: the batch lacks the view, or some samples lack the modality and `absent` is False.
    """
    views = batch.views.get(modality, {})
    if name not in views:
        raise ValueError(
            f"objective needs view {name!r} of {modality!r}, and the batch has {sorted(views) or 'no view of it'}; "
            "declare it in needs(): the views of a kind are numbered from 0"
        )
    if modality in batch.present and not absent:
        lacking = int((~batch.present[modality]).sum())
        raise ValueError(
            f"{lacking} of {len(batch)} samples have no {modality!r}, and this objective needs it in every sample; "
            "leave such samples out of the shards, or use objective 'clip', which accepts missing modalities"
        )
    return views[name]


def encode_views(batch: Batch, ctx: StepContext, modality: str, view: str, count: int = 2) -> Latents:
    """Pooled features [B, D] of the views of one kind, "0", "1", ...: one forward pass for each view.

    Batch norm in the encoder then sees one view at a time, as Barlow Twins and VICReg define it.
    """
    encoder = ctx.encoders[modality]
    return {
        str(number): encoder(view_of(batch, modality, f"{view}{number}"), pooled_only=True).pooled
        for number in range(count)
    }


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to float32; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


def log_sum_exp_over_processes(x: Tensor) -> Tensor:
    """All-reduce by log-sum-exp of [G] numbers, element by element, with gradient."""
    return torch.logsumexp(distributed.gather(x[None]), 0)
