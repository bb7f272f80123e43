"""MoCo v2: a query finds the teacher's key of the other view among a queue of keys of earlier batches."""

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
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum, Teacher
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.queue import Queue
from mmssl.losses.queue_info_nce import queue_info_nce
from mmssl.objectives.common import Name, ObjectiveConfig, TwoViews, couples_rows, encoder_of, kinds_of, names_of


class MocoV2Config(ObjectiveConfig):
    """Settings of MoCo v2 on two views of one modality; see `MocoV2Objective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        temperature: divisor of the cosines. MoCo v2: 0.2; v1: 0.07; small images: 0.1.
        momentum: of the teacher of encoder and head. MoCo: 0.999; small images, whose queue is shorter: 0.99.
        queue: K, number of keys in the queue, over all processes: at least the keys of one step, and not necessarily a multiple.
            MoCo: 65536; small images: 4096.
        embedding: E, output of the head. MoCo: 128.
        head: projection head, not used after training. MoCo v2: 2 layers, hidden 2048, norm none.
        symmetric: whether both views are queries and keys, and the two losses are summed; else the first is the query and the
            second the key. MoCo v2: false; true is usual on small images, and costs twice as much a step.
    """

    kind: Literal["moco_v2"] = "moco_v2"
    modality: Name
    view: TwoViews
    temperature: float = Field(gt=0)
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    queue: int = Field(gt=0)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    symmetric: bool = False

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> MocoV2Objective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the queue is shorter than the keys of one step.
        """
        head = self.head.build(encoder_of(encoders, self.modality).width, self.embedding)
        momentum = plan.schedule(self.momentum, "momentum")
        queue = Queue(self.queue, self.embedding, plan.batch_size * (1 + self.symmetric))
        return MocoV2Objective(self.modality, self.view, head, queue, momentum, self.temperature, self.symmetric)


class MocoV2Objective(Objective):
    """MoCo v2: InfoNCE of the teacher's key of the other view against a queue of keys of earlier steps.

    He et al. 2020 (arXiv:1911.05722), Chen et al. 2020 (arXiv:2003.04297). Negatives come from the queue alone, so the loss is a
    mean over samples, and the size of the batch does not limit their number. The queue is read before the keys of the step are
    pushed. As there, batch norm of both networks sees the batch of one process; there keys are shuffled between processes, so that
    its statistics do not tell which keys belong to the step, and here nothing is. The encoder, not its teacher, is evaluated.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds: one view of each.
        head: [rows, D] -> [rows, E].
        queue: of rows [E].
        momentum: of the teachers of encoder and head.
        temperature: divisor of the cosines.
        symmetric: whether both views are queries and keys; the losses are summed.
    """

    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: TwoViews,
        head: nn.Module,
        queue: Queue,
        momentum: Momentum,
        temperature: float,
        symmetric: bool,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.momentum, self.temperature = modality, view, momentum, temperature
        self.queries: tuple[str, ...] = ("0", "1") if symmetric else ("0",)
        self.keys: tuple[str, ...] = ("1", "0") if symmetric else ("1",)
        self.head, self.queue = head, queue
        self.teacher_head = Teacher(head, momentum)
        coupled = couples_rows(head)
        self.reduction = Reduction.STATISTIC if coupled else Reduction.LOCAL
        self.least_samples = 2 if coupled else 1

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def teachers(self) -> Mapping[str, Momentum]:
        """A teacher of the encoder."""
        return {self.modality: self.momentum}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D]: of queries "0" (and "1"), and the teacher's of keys "teacher/1" (and "teacher/0")."""
        names = dict(zip("01", names_of(self.view), strict=True))

        def pooled(numbers: tuple[str, ...], network: Network) -> dict[str, Tensor]:
            views = [names[number] for number in numbers]
            found = ctx.features(batch, self.modality, views, network=network, pooled_only=True, together=False)
            return {number: features.pooled for number, features in zip(numbers, found, strict=True)}

        keys = {f"teacher/{number}": x for number, x in pooled(self.keys, "teacher").items()}
        return pooled(self.queries, "student") | keys | ctx.presence(batch, self.modality)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: accuracy among K + 1 keys, its chance loss, and the mean age of the queue in steps."""
        present = Present(latents, self.least_samples)
        losses, hits, kept = [], [], {}
        for view, other in zip(self.queries, self.keys, strict=True):
            query = F.normalize(self.head(present.rows(latents[view])), dim=-1)
            key = F.normalize(self.teacher_head(present.rows(latents[f"teacher/{other}"])), dim=-1)
            loss, hit = queue_info_nce(query, key, self.queue.rows, self.temperature)
            losses.append(loss)
            hits.append(hit)
            kept[f"key/{other}"] = key
        accuracy, age = torch.stack(hits).mean(), self.queue.age(ctx.step)
        chance = torch.full_like(accuracy, len(losses) * math.log(len(self.queue.rows) + 1))
        return LossOutput(
            present.terms({"info_nce": torch.stack(losses).sum()}),
            lambda: {"accuracy": accuracy, "chance_loss": chance, "queue_age": age},
            kept,
        )

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Push the keys of all processes, those of the first view first."""
        present = Present(latents, self.least_samples)
        for number in sorted(self.keys):
            self.queue.push(present.gather(latents[f"key/{number}"]), ctx.step)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of the first view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy among the K + 1 keys."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
