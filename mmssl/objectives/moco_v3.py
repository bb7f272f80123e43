"""MoCo v3: the prediction of one view finds the teacher's key of the other view among the keys of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum, Teacher
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.one_way_info_nce import one_way_accuracy, one_way_info_nce
from mmssl.objectives.common import (
    Name,
    ObjectiveConfig,
    TwoViews,
    couples_rows,
    encode_two_views,
    encoder_of,
    kinds_of,
)


class MocoV3Config(ObjectiveConfig):
    """Settings of MoCo v3 on two views of one modality; see `MocoV3Objective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        temperature: T, divisor of the cosines. MoCo v3: 0.2 for transformers, 1.0 for residual networks.
        momentum: of the teacher of encoder and head. MoCo v3: cosine from 0.99 to 1.
        embedding: E, output of the head and of the predictor. MoCo v3: 256.
        head: projection head, not used after training; its last norm has no scale and no shift. MoCo v3: hidden 4096, norm batch,
            norm_last; 3 layers for transformers, 2 for residual networks.
        predictor: MLP from the embedding of one view to the teacher's of the other; its last norm has neither, too. MoCo v3: 2
            layers, hidden 4096, norm batch; norm_last for transformers.
    """

    kind: Literal["moco_v3"] = "moco_v3"
    modality: Name
    view: TwoViews
    temperature: float = Field(gt=0)
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    predictor: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> MocoV3Objective:
        """Build the objective for these encoders."""
        width = encoder_of(encoders, self.modality).width
        head = self.head.build(width, self.embedding, affine_last=False, bias_last=False)
        predictor = self.predictor.build(self.embedding, self.embedding, affine_last=False, bias_last=False)
        momentum = plan.schedule(self.momentum, "momentum")
        return MocoV3Objective(self.modality, self.view, head, predictor, momentum, self.temperature)


class MocoV3Objective(Objective):
    """MoCo v3: InfoNCE of predictions against the teacher's keys of the other views in the global batch, both ways, summed.

    Chen, Xie and He 2021 (arXiv:2104.02057), algorithm 1. Each way is multiplied by 2 T, so that the size of gradients depends less
    on the temperature T. There is no queue: negatives are the keys of all processes, without gradient, so batches are large. Each
    view goes through the networks in a separate call. The encoder, not its teacher, is evaluated.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds: one view of each.
        head: [rows, D] -> [rows, E].
        predictor: [rows, E] -> [rows, E].
        momentum: of the teachers of encoder and head.
        temperature: T, divisor of the cosines.
    """

    least_samples = 2
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: TwoViews,
        head: nn.Module,
        predictor: nn.Module,
        momentum: Momentum,
        temperature: float,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.momentum, self.temperature = modality, view, momentum, temperature
        self.head, self.predictor = head, predictor
        self.teacher_head = Teacher(head, momentum)
        self.reduction = Reduction.STATISTIC if couples_rows(self) else Reduction.GATHER

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
        """One loss term; metrics: in-batch accuracy and the chance loss, 4 T ln(G)."""
        present = Present(latents, self.least_samples)
        ways = []
        for view, other in (("0", "1"), ("1", "0")):
            query = F.normalize(self.predictor(self.head(present.rows(latents[view]))), dim=-1)
            key = F.normalize(self.teacher_head(present.rows(latents[f"teacher/{other}"])), dim=-1)
            ways.append((query, present.gather(key), present.offset(key)))
        losses = [one_way_info_nce(query, keys, self.temperature, offset) for query, keys, offset in ways]
        seen = [(query.detach(), keys, offset) for query, keys, offset in ways]

        def measure() -> dict[str, Tensor]:
            accuracy = torch.stack([one_way_accuracy(*way) for way in seen]).mean()
            chance = 4 * self.temperature * math.log(max(len(seen[0][1]), 1))
            return {"accuracy": accuracy, "chance_loss": torch.full_like(accuracy, chance)}

        return LossOutput({"info_nce": 2 * self.temperature * torch.stack(losses).sum()}, measure)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
