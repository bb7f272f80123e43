"""SimSiam: each view predicts the other through a predictor and a stop-gradient; no negatives, no teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.monitors import spread
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, ParameterRule, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.negative_cosine import negative_cosine
from mmssl.objectives.common import (
    Name,
    ObjectiveConfig,
    TwoViews,
    couples_rows,
    encode_two_views,
    encoder_of,
    kinds_of,
)


class SimSiamConfig(ObjectiveConfig):
    """Settings of SimSiam on two views of one modality; see `SimSiamObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        embedding: E, output of the head and of the predictor. SimSiam: 2048.
        head: projection head, not used after training; its last norm has no scale and shift. SimSiam: 3 layers, hidden 2048,
            norm batch, norm_last; 2 layers on small images.
        predictor: MLP from the embedding of one view to that of the other. SimSiam: 2 layers, hidden 512, norm batch.
        constant_predictor_rate: keep the learning rate of the predictor at its peak, whatever the schedule, as SimSiam does.
    """

    kind: Literal["simsiam"] = "simsiam"
    modality: Name
    view: TwoViews
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    predictor: MLPProjectionConfig
    constant_predictor_rate: bool = True

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SimSiamObjective:
        """Build the objective for these encoders."""
        width = encoder_of(encoders, self.modality).width
        head = self.head.build(width, self.embedding, affine_last=False)
        predictor = self.predictor.build(self.embedding, self.embedding)
        return SimSiamObjective(self.modality, self.view, head, predictor, self.constant_predictor_rate)


class SimSiamObjective(Objective):
    """SimSiam: negative cosine between the prediction of one view and the projection of the other, both ways.

    Chen and He 2021 (arXiv:2011.10566), algorithm 1. As there, each view goes through encoder, head and predictor in a call of its
    own, so batch norm sees one view at a time. Head and predictor are part of the criterion: their batch norm sees the samples of
    all processes. Collapsed embeddings reach the lowest loss, -1, too: watch the spread.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        head: [rows, D] -> [rows, E].
        predictor: [rows, E] -> [rows, E].
        constant_predictor_rate: keep the learning rate of the predictor at its peak.
    """

    accepts_absent = True

    def __init__(
        self, modality: str, view: TwoViews, head: nn.Module, predictor: nn.Module, constant_predictor_rate: bool = True
    ) -> None:
        super().__init__()
        self.constant_predictor_rate = constant_predictor_rate
        self.modality, self.view = modality, view
        self.head, self.predictor = head, predictor
        batch_norm = couples_rows(self)
        self.reduction = Reduction.STATISTIC if batch_norm else Reduction.LOCAL
        self.least_samples = 2 if batch_norm else 1

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def parameter_groups(self) -> Mapping[str, ParameterRule]:
        """The predictor's rate is constant, so that the predictor keeps up with the latest projections (section 4.2)."""
        return {"predictor": ParameterRule(constant_rate=True)} if self.constant_predictor_rate else {}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metric: spread of the projections, 1 over the whole sphere, 0 at collapse."""
        present = Present(latents, self.least_samples)
        a, b = self.head(present.rows(latents["0"])), self.head(present.rows(latents["1"]))
        loss = (negative_cosine(self.predictor(a), b) + negative_cosine(self.predictor(b), a)) / 2
        seen = a.detach(), b.detach()
        found = present.terms({"negative_cosine": loss})
        return LossOutput(found, lambda: {"spread": (spread(seen[0]) + spread(seen[1])) / 2})

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Spread of the projections; there is no chance loss, because collapse reaches the lowest loss."""
        return Headline(figures={"spread": scalars["spread"]})
