"""VICReg: two views of a sample agree, every feature keeps its variance, and features are not correlated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.monitors import LEAST_DEVIATION
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.projection import CentredHeadConfig
from mmssl.losses.vicreg import COLLAPSED, vicreg
from mmssl.objectives.common import Name, ObjectiveConfig, TwoViews, encode_two_views, encoder_of, kinds_of


class VicRegConfig(ObjectiveConfig):
    """Settings of VICReg on two views of one modality; see `VicRegObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        invariance_weight: factor of the distance between the views. VICReg: 25.
        variance_weight: factor of the hinge that keeps standard deviations at 1 or above. VICReg: 25.
        covariance_weight: factor of the squared covariances of different features. VICReg: 1.
        embedding: E, output of the head. VICReg: 8192.
        head: projection head, not used after training. VICReg: 3 layers, hidden 8192, norm batch.
    """

    kind: Literal["vicreg"] = "vicreg"
    modality: Name
    view: TwoViews
    invariance_weight: float = Field(gt=0)
    variance_weight: float = Field(gt=0)
    covariance_weight: float = Field(gt=0)
    embedding: int = Field(ge=2)
    head: CentredHeadConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> VicRegObjective:
        """Build the objective for these encoders."""
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding, bias_last=False)
        weights = (self.invariance_weight, self.variance_weight, self.covariance_weight)
        return VicRegObjective(self.modality, self.view, head, *weights)


class VicRegObjective(Objective):
    """VICReg: mean squared error of two views, variance hinge and covariance penalty, after a projection head.

    Bardes et al. 2022 (arXiv:2105.04906). There are neither negatives nor a teacher: the variance term prevents collapse, for each
    view alone. Each view has its own forward pass through encoder and head, as in the authors' code. The head is part of the
    criterion: its batch norm, variances and covariances are over the global batch.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        head: [B, D] -> [B, E].
        invariance_weight: factor of the distance.
        variance_weight: factor of the hinge.
        covariance_weight: factor of the covariances.
    """

    reduction = Reduction.STATISTIC
    least_samples = 2
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: TwoViews,
        head: nn.Module,
        invariance_weight: float,
        variance_weight: float,
        covariance_weight: float,
    ) -> None:
        super().__init__()
        self.modality, self.view = modality, view
        self.head = head
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Three terms; logs the mean standard deviation, and the loss of a collapsed model: 24.75 for the paper's weights."""
        present = Present(latents, self.least_samples)
        loss = vicreg(self.head(present.rows(latents["0"])), self.head(present.rows(latents["1"])))
        deviation, collapsed = loss.deviation, self.variance_weight * COLLAPSED
        return LossOutput(
            present.terms(
                {
                    "invariance": self.invariance_weight * loss.invariance,
                    "variance": self.variance_weight * loss.variance,
                    "covariance": self.covariance_weight * loss.covariance,
                }
            ),
            lambda: {
                "deviation": deviation,
                "deviation_least": torch.full_like(deviation, LEAST_DEVIATION),
                "chance_loss": torch.full_like(deviation, collapsed),
            },
        )

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Mean standard deviation, 1 where the hinge is met, beside the loss of a collapsed model."""
        return Headline(scalars["chance_loss"], {"deviation": scalars["deviation"]})
