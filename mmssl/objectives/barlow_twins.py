"""Barlow Twins: features of two views correlate with themselves and with no other feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.projection import CentredHeadConfig
from mmssl.losses.barlow_twins import barlow_twins
from mmssl.objectives.common import Name, ObjectiveConfig, TwoViews, encode_two_views, encoder_of, kinds_of


class BarlowTwinsConfig(ObjectiveConfig):
    """Settings of Barlow Twins on two views of one modality; see `BarlowTwinsObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        redundancy_weight: lambda, factor of the squared correlations between different features. Barlow Twins: 0.0051.
        embedding: E, output of the head. Barlow Twins: 8192, more than the encoder's 2048.
        head: projection head, not used after training. Barlow Twins: 3 layers, hidden 8192, norm batch.
    """

    kind: Literal["barlow_twins"] = "barlow_twins"
    modality: Name
    view: TwoViews
    redundancy_weight: float = Field(gt=0)
    embedding: int = Field(ge=2)
    head: CentredHeadConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> BarlowTwinsObjective:
        """Build the objective for these encoders."""
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding, bias_last=False)
        return BarlowTwinsObjective(self.modality, self.view, head, self.redundancy_weight)


class BarlowTwinsObjective(Objective):
    """Barlow Twins: the cross-correlation matrix of two views against the identity, after a projection head.

    Zbontar et al. 2021 (arXiv:2103.03230). There are neither negatives nor a teacher: standardised features cannot be constant, and
    decorrelated ones cannot be copies. Each view has its own forward pass through encoder and head, as in the authors' code. The
    head is part of the criterion: its batch norm and the correlations are over the global batch.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        head: [B, D] -> [B, E].
        redundancy_weight: factor of the squared correlations off the diagonal.
    """

    reduction = Reduction.STATISTIC
    least_samples = 2
    accepts_absent = True

    def __init__(self, modality: str, view: TwoViews, head: nn.Module, redundancy_weight: float) -> None:
        super().__init__()
        self.modality, self.view, self.redundancy_weight = modality, view, redundancy_weight
        self.head = head

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Two terms; logs the mean correlation of the views, and the loss of a collapsed model, E."""
        present = Present(latents, self.least_samples)
        a, b = self.head(present.rows(latents["0"])), self.head(present.rows(latents["1"]))
        loss = barlow_twins(a, b)
        correlation, collapsed = loss.correlation, float(a.shape[1])
        return LossOutput(
            present.terms({"invariance": loss.invariance, "redundancy": self.redundancy_weight * loss.redundancy}),
            lambda: {"correlation": correlation, "chance_loss": torch.full_like(correlation, collapsed)},
        )

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Mean correlation of the views, beside the loss of a collapsed model."""
        return Headline(scalars["chance_loss"], {"correlation": scalars["correlation"]})
