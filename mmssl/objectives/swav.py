"""SwAV: from any view, predict the code of another, global view: its assignment to prototypes that the batch uses equally."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.config import Config, Duration
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.prototypes import Prototypes
from mmssl.heads.queue import Queue
from mmssl.losses.assignments import assignment_metrics, view_cross_entropy
from mmssl.losses.sinkhorn import sinkhorn
from mmssl.objectives.common import encoder_of
from mmssl.objectives.parts.multi_crop import Crops, MultiCropConfig, cancel_gradients, stacked


class SwavQueueConfig(Config):
    """Settings of SwAV's queue: embeddings of earlier steps that are balanced with the batch, where batches are small.

    Attributes:
        length: samples of all processes whose two embeddings are kept. SwAV: 3840 for batches of 256.
        start: how long, from the start of the run, it stays empty; it is used as soon as it is full. SwAV: 15 epochs.
    """

    length: int = Field(gt=0)
    start: Duration


class SwavConfig(MultiCropConfig):
    """Settings of SwAV on global and local views of one modality; see `SwavObjective`.

    Attributes:
        temperature: divisor of the scores of predictions. SwAV: 0.1.
        code_temperature: epsilon, divisor of the scores of codes, lower. SwAV: 0.05.
        iterations: of Sinkhorn-Knopp, which makes the codes. SwAV: 3.
        prototypes: K, number of prototypes. SwAV: 3000.
        frozen_prototypes: how long, from the start of the run, prototypes do not move. SwAV: 1 epoch.
        queue: embeddings of earlier steps for the codes; null: the batch is large enough.
        embedding: E, size of the embeddings that prototypes score. SwAV: 128.
        head: projection head, not used after training. SwAV: 2 layers, hidden 2048, norm batch.
    """

    kind: Literal["swav"] = "swav"
    temperature: float = Field(gt=0)
    code_temperature: float = Field(gt=0)
    iterations: int = Field(default=3, ge=1)
    prototypes: int = Field(ge=2)
    frozen_prototypes: Duration = Duration("0 steps")
    queue: SwavQueueConfig | None = None
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SwavObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the queue is shorter than a batch.
        """
        return SwavObjective(
            self.crops(),
            self.head.build(encoder_of(encoders, self.modality).width, self.embedding),
            Prototypes(self.embedding, self.prototypes),
            self.temperature,
            partial(sinkhorn, temperature=self.code_temperature, iterations=self.iterations),
            plan.steps_within(self.frozen_prototypes, "frozen_prototypes"),
            None if self.queue is None else Queue(self.queue.length, 2 * self.embedding, plan.batch_size),
            0 if self.queue is None else plan.steps_within(self.queue.start, "queue.start"),
        )


class SwavObjective(Objective):
    """SwAV: cross entropy between the codes of global views and the predictions of all other views (swapped prediction).

    Caron et al. 2020 (arXiv:2006.09882); a mean over pairs of different views. Sinkhorn-Knopp makes the codes of each global view,
    over all processes and the queue, whose embeddings are scored by the prototypes of now, before those of the step are pushed.
    Views of one size go through the encoder in one call, all views through the head, which is part of the criterion: its batch norm
    sees the views of all processes. Features that are all alike cost ln K.

    Args:
        crops: global and local views.
        head: [rows, D] -> [rows, E].
        prototypes: unit-norm [rows, E] -> scores [rows, K].
        temperature: divisor of the scores of predictions.
        codes: scores [rows, K] -> codes [rows, K], balanced over all processes.
        frozen_steps: number of first steps in which prototypes do not move.
        queue: of rows [2 * E]; None: there is none.
        queue_start: step from which embeddings are pushed.
    """

    reduction = Reduction.STATISTIC
    least_samples = 2
    accepts_absent = True

    def __init__(
        self,
        crops: Crops,
        head: nn.Module,
        prototypes: Prototypes,
        temperature: float,
        codes: Callable[[Tensor], Tensor],
        frozen_steps: int = 0,
        queue: Queue | None = None,
        queue_start: int = 0,
    ) -> None:
        super().__init__()
        self.crops, self.head, self.prototypes, self.queue = crops, head, prototypes, queue
        self.temperature, self.codes = temperature, codes
        self.frozen_steps, self.queue_start = frozen_steps, queue_start

    def needs(self) -> Needs:
        """Global and local views."""
        return self.crops.needs()

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of every view, under its name."""
        return self.crops.encode(batch, ctx, self.crops.views)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: see `assignment_metrics`, of predictions' use. Keeps the global embeddings [n, 2 * E]."""
        present = Present(latents, self.least_samples)
        pooled = stacked(present, latents, self.crops.views)
        embeddings = F.normalize(self.head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2]), dim=-1)
        scores = self.prototypes(embeddings)
        seen, n = scores[:2].detach(), scores.shape[1]
        targets = torch.stack([self.codes(x)[:n] for x in torch.cat([seen, self._queue_scores(ctx)], 1)])
        loss = view_cross_entropy(targets, scores, self.temperature)
        share = loss.detach()
        return LossOutput(
            present.terms({"swav": loss}),
            lambda: assignment_metrics(share, targets, usage=(seen / self.temperature).softmax(-1)),
            {"embeddings": embeddings[:2].detach().transpose(0, 1).flatten(1)},
        )

    @torch.no_grad()
    def _queue_scores(self, ctx: StepContext) -> Tensor:
        """Scores [2, q, K] of this process' part of the queue, once it is full: together the processes score each row once."""
        weight = self.prototypes.weight
        if self.queue is None or ctx.step < self.queue_start or not self.queue.is_full():
            return weight.new_empty(2, 0, len(weight))
        mine = self.queue.rows[distributed.rank() :: distributed.world_size()]
        return torch.stack([self.prototypes(rows) for rows in mine.chunk(2, dim=1)])

    def before_update(self, ctx: StepContext) -> None:
        """Cancel the gradient of the prototypes in the first steps."""
        if ctx.step < self.frozen_steps:
            cancel_gradients(self.prototypes)

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Normalise the prototypes, and push the embeddings of all processes."""
        self.prototypes.normalise()
        if self.queue is not None and ctx.step >= self.queue_start:
            present = Present(latents, self.least_samples)
            self.queue.push(present.gather(latents["embeddings"]), ctx.step)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one global view."""
        return {self.crops.modality: self.crops.global_views[0]}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Prototypes in use, and divergence from the codes; chance is the loss of a uniform guess."""
        return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("prototypes_used", "kl")})
