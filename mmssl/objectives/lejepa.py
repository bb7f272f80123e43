"""LeJEPA: views of a sample agree, and SIGReg makes embeddings normally distributed; no teacher, no negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs, view_names
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.monitors import LEAST_DEVIATION, deviation
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.sigreg import random_directions, sigreg, sigreg_of_collapse, view_invariance
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of


class LeJepaConfig(ObjectiveConfig):
    """Settings of LeJEPA on views of one modality; see `LeJepaObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the global views; their mean is the target of all views.
        views: number of global views. LeJEPA: 2 with 6 local views, or 4 alone.
        local_view: kind of the local views, smaller crops; None: there are none.
        local_views: number of local views.
        sigreg_weight: lambda, the weight of SIGReg; that of the invariance is 1 - lambda. LeJEPA: 0.05; 0.02 on small data.
        directions: number of random directions of SIGReg in each step.
        embedding: E, output of the head.
        head: projection head, not used after training. LeJEPA: 3 layers, hidden 2048, norm batch.
    """

    kind: Literal["lejepa"] = "lejepa"
    modality: Name
    view: str
    views: int = Field(ge=1)
    local_view: str | None = None
    local_views: int = Field(default=0, ge=0)
    sigreg_weight: float = Field(gt=0, lt=1)
    directions: int = Field(default=1024, gt=0)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig

    @model_validator(mode="after")
    def _views_can_differ(self) -> LeJepaConfig:
        if (self.local_view is None) != (self.local_views == 0):
            raise ValueError(
                f"got local_view {self.local_view!r} and local_views {self.local_views}, wanted both or neither"
            )
        if self.local_view == self.view:
            raise ValueError(
                f"local_view: got {self.view!r}, the kind of the global views: raise views, or name another"
            )
        if self.views + self.local_views < 2:
            raise ValueError(
                "views: got 1 and no local views, wanted at least 2 views in all: one has nothing to agree with"
            )
        return self

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> LeJepaObjective:
        """Build the objective for these encoders."""
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding)
        kinds = {self.view: self.views} | ({self.local_view: self.local_views} if self.local_view else {})
        return LeJepaObjective(self.modality, kinds, head, self.sigreg_weight, self.directions)


class LeJepaObjective(Objective):
    """LeJEPA: invariance of views and SIGReg, after a projection head.

    Balestriero and LeCun 2025 (arXiv:2511.08544). Views of one kind go through the encoder in one call, all views through the
    head in one call. The head is part of the criterion: its batch norm sees all views of all processes. Directions are drawn in
    each step, seeded by the number of the step alone: equal on all processes, and the same after a resume.

    Args:
        modality: modality of the encoder to train.
        views: kind -> number of views; the first kind is the global one.
        head: [rows, D] -> [rows, E].
        sigreg_weight: lambda.
        directions: number of random directions in each step.
    """

    reduction = Reduction.STATISTIC
    least_samples = 2
    accepts_absent = True

    def __init__(
        self, modality: str, views: Mapping[str, int], head: nn.Module, sigreg_weight: float, directions: int
    ) -> None:
        super().__init__()
        self.modality, self.views = modality, dict(views)
        self.head = head
        self.sigreg_weight, self.directions = sigreg_weight, directions

    def needs(self) -> Needs:
        """Global and local views."""
        return {self.modality: self.views}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of every view, under the name of the view."""
        latents: Latents = {}
        for kind, count in self.views.items():
            names = view_names(kind, count)
            views = ctx.features(batch, self.modality, names, pooled_only=True)
            latents |= {name: features.pooled for name, features in zip(names, views, strict=True)}
        return latents | ctx.presence(batch, self.modality)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Two loss terms; metrics: SIGReg without its weight (optimum 1.05), deviation (1), and the loss of a collapse to zero."""
        present = Present(latents, self.least_samples)
        names = [name for kind, count in self.views.items() for name in view_names(kind, count)]
        pooled = torch.stack([present.rows(latents[name]) for name in names])
        x = self.head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])  # [V, B, E]
        distance = sigreg(x, random_directions(x, self.directions, ctx.generator("sigreg", x.device)))
        invariance = view_invariance(x, next(iter(self.views.values())))
        collapse = self.sigreg_weight * sigreg_of_collapse(int(distributed.count(x[0])))
        seen, embeddings = distance.detach(), x.detach().flatten(0, 1)

        def measure() -> dict[str, Tensor]:
            return {
                "sigreg": seen,
                "deviation": deviation(embeddings),
                "deviation_least": torch.full_like(seen, LEAST_DEVIATION),
                "collapse_loss": torch.full_like(seen, collapse),
            }

        terms = {"sigreg": self.sigreg_weight * distance, "invariance": (1 - self.sigreg_weight) * invariance}
        return LossOutput(present.terms(terms), measure)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one global view."""
        return {self.modality: f"{next(iter(self.views))}0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """SIGReg without its weight; chance is the loss of a collapse to zero."""
        return Headline(scalars["collapse_loss"], {"sigreg": scalars["sigreg"]})
