"""What every objective uses: the base of their configs, and reading views, encoders and precise numbers with clear errors."""

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
from mmssl.core.objective import Objective

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""A modality or child: a plain word, because it becomes part of parameter names, where dots, dashes and slashes separate."""


class ObjectiveConfig(Config, ABC):
    """Base of objective configs: each adds `kind: Literal[...]` and builds its module."""

    @abstractmethod
    def build(self, encoders: Mapping[str, Encoder]) -> Objective:
        """The objective for these encoders (modality -> encoder), which it measures and does not keep.

        Raises:
            ValueError: an encoder is missing or does not fit; says which and what to change.
        """


def encoder_of(encoders: Mapping[str, Encoder], modality: str) -> Encoder:
    """The encoder of a modality.

    Raises:
        ValueError: there is none.
    """
    if modality not in encoders:
        raise ValueError(
            f"objective needs an encoder for {modality!r}, and the recipe has {sorted(encoders)}{did_you_mean(modality, encoders)}"
        )
    return encoders[modality]


def view_of(batch: Batch, modality: str, name: str, *, absent: bool = False) -> Tensor:
    """The view [B, ...] of a modality, e.g. "crop0".

    Args:
        batch: has it, among others.
        modality: whose view.
        name: kind and number.
        absent: whether samples may lack it, whose rows are blank.

    Raises:
        ValueError: the batch does not have it, or some samples lack it that must not.
    """
    views = batch.views.get(modality, {})
    if name not in views:
        raise ValueError(
            f"objective needs view {name!r} of {modality!r}, and the batch has {sorted(views) or 'no view of it'}: "
            "the data floor makes the views that needs() names, one number from 0 after each kind"
        )
    if modality in batch.present and not absent:
        lacking = int((~batch.present[modality]).sum())
        raise ValueError(
            f"{lacking} of {len(batch)} samples have no {modality!r}, and this objective uses every sample of a batch: "
            "leave such samples out of the shards, or take the objective 'clip', which aligns what is there"
        )
    return views[name]


def precise(x: Tensor) -> Tensor:
    """float32 of half-precision tensors; float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def log_sum_exp_over_processes(x: Tensor) -> Tensor:
    """Log-sum-exp of [G] numbers over processes, element by element, with gradient."""
    return torch.logsumexp(distributed.gather(x[None]), 0)
