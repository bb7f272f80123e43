"""SimCLR: two random views of each sample are positives, all other views of the global batch are negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

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
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.nt_xent import nt_xent, nt_xent_accuracy
from mmssl.objectives.common import (
    Name,
    ObjectiveConfig,
    TwoViews,
    couples_rows,
    encode_two_views,
    encoder_of,
    kinds_of,
)


class SimClrConfig(ObjectiveConfig):
    """Settings of SimCLR on two views of one modality; see `SimClrObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        temperature: divisor of the cosines. SimCLR: 0.1 on large images, 0.5 on small ones; SLIP: 0.1.
        embedding: E, output of the head. SimCLR: 128; SLIP: 256.
        head: projection head, not used after training. SimCLR: 2 layers, hidden 2048, norm batch, norm_last.
    """

    kind: Literal["simclr"] = "simclr"
    modality: Name
    view: TwoViews
    temperature: float = Field(gt=0)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SimClrObjective:
        """Build the objective for these encoders."""
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding)
        return SimClrObjective(self.modality, self.view, head, self.temperature)


class SimClrObjective(Objective):
    """SimCLR: NT-Xent over the global batch, after a projection head.

    Chen et al. 2020 (arXiv:2002.05709). Both views go through encoder and head in one call. The head is part of the criterion:
    its batch norm sees all views of all processes, so views do not reveal their batch, and micro-batches change nothing.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        head: [rows, D] -> [rows, E].
        temperature: divisor of the cosines.
    """

    least_samples = 2
    accepts_absent = True

    def __init__(self, modality: str, view: TwoViews, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.modality, self.view, self.temperature = modality, view, temperature
        self.head = head
        batch_norm = couples_rows(head)
        self.reduction = Reduction.STATISTIC if batch_norm else Reduction.GATHER

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view, together=True)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: in-batch accuracy and the chance loss, ln(2G - 1)."""
        present = Present(latents, self.least_samples)
        pooled = torch.cat([present.rows(latents["0"]), present.rows(latents["1"])])
        a, b = F.normalize(self.head(pooled), dim=-1).chunk(2)
        all_a, all_b, offset = present.gather(a), present.gather(b), present.offset(a)
        loss = present.share(a) * nt_xent(a, b, self.temperature, all_a=all_a, all_b=all_b, offset=offset)
        seen = [x.detach() for x in (a, b, all_a, all_b)]

        def measure() -> dict[str, Tensor]:
            accuracy = nt_xent_accuracy(*seen[:2], all_a=seen[2], all_b=seen[3], offset=offset)
            return {
                "accuracy": accuracy,
                "chance_loss": torch.full_like(accuracy, math.log(max(2 * len(seen[2]) - 1, 1))),
            }

        return LossOutput({"nt_xent": loss}, measure)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
