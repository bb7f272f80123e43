"""Multi-crop: two global views of a sample and smaller local ones, which share the settings and the encoding of DINO and SwAV."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs, view_names
from mmssl.core.context import StepContext
from mmssl.core.forward import Network
from mmssl.core.objective import Latents
from mmssl.core.presence import Present
from mmssl.objectives.common import Name, ObjectiveConfig, TwoViews, kinds_of


@dataclass(frozen=True)
class Crops:
    """Names of the global and local views of one modality, and what an objective does with them.

    Attributes:
        modality: of the encoder.
        kinds: kind -> number of global views, two in all.
        local_kinds: kind -> number of local views.
    """

    modality: str
    kinds: dict[str, int]
    local_kinds: dict[str, int]

    @property
    def global_views(self) -> list[str]:
        """Names of the global views."""
        return _names(self.kinds)

    @property
    def views(self) -> list[str]:
        """Names of all views, the global ones first."""
        return [*self.global_views, *_names(self.local_kinds)]

    def needs(self) -> Needs:
        """All views, for `Objective.needs`."""
        return {self.modality: self.kinds | self.local_kinds}

    def encode(self, batch: Batch, ctx: StepContext, views: Sequence[str], network: Network = "student") -> Latents:
        """Pooled features [B, D] under the names of the views, and "present"; one call for the views of one size."""
        features = ctx.features(batch, self.modality, views, network=network, pooled_only=True)
        pooled = {name: found.pooled for name, found in zip(views, features, strict=True)}
        return pooled | ctx.presence(batch, self.modality)


def stacked(present: Present, latents: Latents, names: Sequence[str]) -> Tensor:
    """The rows of present samples of some latents [B, D], as [V, n, D]."""
    return torch.stack([present.rows(latents[name]) for name in names])


def cancel_gradients(module: nn.Module) -> None:
    """Leave the parameters of a module out of the next update, also of its weight decay and momentum."""
    for parameter in module.parameters():
        parameter.grad = None


class MultiCropConfig(ObjectiveConfig, ABC):
    """Base of the settings of objectives on two global and some local views of one modality.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two global views; two kinds, `[crop, crop_b]`: one view of each.
        local_view: kind of the local views, smaller crops; None: there are none.
        local_views: number of local views.
    """

    modality: Name
    view: TwoViews
    local_view: str | None = None
    local_views: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _local_views_are_others(self) -> MultiCropConfig:
        if (self.local_view is None) != (self.local_views == 0):
            raise ValueError(
                f"got local_view {self.local_view!r} and local_views {self.local_views}, wanted both or neither"
            )
        if self.local_view in kinds_of(self.view):
            raise ValueError(f"local_view: got {self.local_view!r}, a kind of the global views: name another")
        return self

    def crops(self) -> Crops:
        """The views."""
        return Crops(self.modality, kinds_of(self.view), {self.local_view: self.local_views} if self.local_view else {})


def _names(kinds: dict[str, int]) -> list[str]:
    return [name for kind, count in kinds.items() for name in view_names(kind, count)]
