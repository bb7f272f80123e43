"""BYOL: each view predicts the teacher's projection of the other view; no negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.monitors import spread
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum, Teacher
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


class ByolConfig(ObjectiveConfig):
    """Settings of BYOL on two views of one modality; see `ByolObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        momentum: of the teacher of encoder and head. BYOL: cosine from 0.996 (1000 epochs; 0.99 for 300, 0.97 for 40) to 1.
        embedding: E, output of the head and of the predictor. BYOL: 256.
        head: projection head, not used after training; its last layer has no bias, nor has the predictor's. BYOL: 2 layers, hidden
            4096, norm batch.
        predictor: MLP from the embedding of one view to the teacher's of the other. BYOL: 2 layers, hidden 4096, norm batch.
    """

    kind: Literal["byol"] = "byol"
    modality: Name
    view: TwoViews
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    predictor: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> ByolObjective:
        """Build the objective for these encoders."""
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding, bias_last=False)
        predictor = self.predictor.build(self.embedding, self.embedding, bias_last=False)
        return ByolObjective(self.modality, self.view, head, predictor, plan.schedule(self.momentum, "momentum"))


class ByolObjective(Objective):
    """BYOL: squared distance between the prediction of one view and the teacher's projection of the other, both ways, summed.

    Grill et al. 2020 (arXiv:2006.07733), equation 2: 2 - 2 cos for each way, so the loss of orthogonal embeddings is 4. Each view
    goes through the networks in a separate call, and batch norm sees the batch, in the teacher too. Collapsed
    embeddings reach the lowest loss, 0, too: watch the spread. The encoder, not its teacher, is evaluated.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds: one view of each.
        head: [rows, D] -> [rows, E].
        predictor: [rows, E] -> [rows, E].
        momentum: of the teachers of encoder and head.
    """

    accepts_absent = True

    def __init__(
        self, modality: str, view: TwoViews, head: nn.Module, predictor: nn.Module, momentum: Momentum
    ) -> None:
        super().__init__()
        self.modality, self.view, self.momentum = modality, view, momentum
        self.head, self.predictor = head, predictor
        self.teacher_head = Teacher(head, momentum)
        coupled = couples_rows(self)
        self.reduction = Reduction.STATISTIC if coupled else Reduction.LOCAL
        self.least_samples = 2 if coupled else 1

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def teachers(self) -> Mapping[str, Momentum]:
        """A teacher of the encoder."""
        return {self.modality: self.momentum}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1", and the teacher's, "teacher/0" and "teacher/1"."""
        student = encode_two_views(batch, ctx, self.modality, self.view)
        teacher = encode_two_views(batch, ctx, self.modality, self.view, network="teacher")
        return student | {f"teacher/{number}": teacher[number] for number in ("0", "1")}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metric: spread of the projections, 1 over the whole sphere, 0 at collapse."""
        present = Present(latents, self.least_samples)
        a, b = (self.head(present.rows(latents[number])) for number in ("0", "1"))
        of_a, of_b = (self.teacher_head(present.rows(latents[f"teacher/{number}"])) for number in ("0", "1"))
        cosines = negative_cosine(self.predictor(a), of_b) + negative_cosine(self.predictor(b), of_a)
        seen = a.detach(), b.detach()
        return LossOutput(
            present.terms({"distance": 4 + 2 * cosines}), lambda: {"spread": (spread(seen[0]) + spread(seen[1])) / 2}
        )

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Spread of the projections; there is no chance loss, because collapse reaches the lowest loss."""
        return Headline(figures={"spread": scalars["spread"]})
