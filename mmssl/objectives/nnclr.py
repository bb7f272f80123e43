"""NNCLR: the prediction of one view finds the nearest neighbour, among earlier samples, of the other view of its sample."""

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
from mmssl.heads.queue import Queue
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


class NnClrConfig(ObjectiveConfig):
    """Settings of NNCLR on two views of one modality; see `NnClrObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        temperature: divisor of the cosines. NNCLR: 0.1.
        queue: K, number of earlier projections among which neighbours are searched, over all processes: at least the batch, and not
            necessarily a multiple. NNCLR: 98304.
        embedding: E, output of the head and of the predictor. NNCLR: 256.
        head: projection head, not used after training; its last layer has no bias, and a last norm no scale and no shift. NNCLR: 3
            layers, hidden 2048, norm batch, norm_last.
        predictor: MLP from the embedding of one view to the neighbour of the other. NNCLR: 2 layers, hidden 4096, norm batch.
    """

    kind: Literal["nnclr"] = "nnclr"
    modality: Name
    view: TwoViews
    temperature: float = Field(gt=0)
    queue: int = Field(gt=0)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    predictor: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> NnClrObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the queue is shorter than the batch.
        """
        width = encoder_of(encoders, self.modality).width
        # The batch norm of the predictor removes a shift.
        head = self.head.build(width, self.embedding, affine_last=False, bias_last=False)
        predictor = self.predictor.build(self.embedding, self.embedding)
        queue = Queue(self.queue, self.embedding, plan.batch_size)
        return NnClrObjective(self.modality, self.view, head, predictor, queue, self.temperature)


class NnClrObjective(Objective):
    """NNCLR: InfoNCE between the nearest neighbour of one view and the predictions of the other view, mean of both ways.

    Dwibedi et al. 2021 (arXiv:2104.14548), equations 3 and 4. The neighbour is the row of a queue of earlier projections with the
    highest cosine, without gradient; negatives are the predictions of the global batch. The queue gets the projections of the first
    view, after its neighbours are found. Each view goes through the networks in a separate call.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds: one view of each.
        head: [rows, D] -> [rows, E].
        predictor: [rows, E] -> [rows, E].
        queue: of rows [E].
        temperature: divisor of the cosines.
    """

    least_samples = 2
    accepts_absent = True

    def __init__(
        self, modality: str, view: TwoViews, head: nn.Module, predictor: nn.Module, queue: Queue, temperature: float
    ) -> None:
        super().__init__()
        self.modality, self.view, self.temperature = modality, view, temperature
        self.head, self.predictor, self.queue = head, predictor, queue
        self.reduction = Reduction.STATISTIC if couples_rows(self) else Reduction.GATHER

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: in-batch accuracy, the chance loss, ln(G), and the mean age of the queue in steps."""
        present = Present(latents, self.least_samples)
        a, b = (self.head(present.rows(latents[number])) for number in ("0", "1"))
        unit = [F.normalize(x.detach(), dim=-1) for x in (a, b)]
        found = [self.queue.nearest(x) for x in unit]
        predictions = [present.gather(F.normalize(self.predictor(x), dim=-1)) for x in (b, a)]
        offset, age = present.offset(a), self.queue.age(ctx.step)
        losses = [
            one_way_info_nce(neighbour, candidates, self.temperature, offset)
            for neighbour, candidates in zip(found, predictions, strict=True)
        ]
        seen = [(x, candidates.detach(), offset) for x, candidates in zip(found, predictions, strict=True)]

        def measure() -> dict[str, Tensor]:
            accuracy = torch.stack([one_way_accuracy(*way) for way in seen]).mean()
            chance = torch.full_like(accuracy, math.log(max(len(seen[0][1]), 1)))
            return {"accuracy": accuracy, "chance_loss": chance, "queue_age": age}

        return LossOutput({"info_nce": torch.stack(losses).mean()}, measure, {"projection": unit[0]})

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Push the projections of the first view of all processes."""
        self.queue.push(Present(latents, self.least_samples).gather(latents["projection"]), ctx.step)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
