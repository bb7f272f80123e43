"""Pretext tasks: tell by which rotation, order, permutation or speed a view was changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.token_predictors import TokenPredictorConfig
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.pretext_task import PretextTask
from mmssl.objectives.parts.pretext_tasks import TaskConfig


class PretextConfig(ObjectiveConfig):
    """Settings of a pretext task for one modality; see `PretextObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view that is changed.
        choice: kind of view with the label: `{kind: choice, choices: K}`, with the K of the task.
        task: how the view is changed by the label: rotation, jigsaw, context (pictures), order, arrow, speed (over time).
        predictor: head on the features of all parts together, not used after training: linear or bert.
    """

    kind: Literal["pretext"] = "pretext"
    modality: Name
    view: str
    choice: str = "choice"
    task: TaskConfig
    predictor: TokenPredictorConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> PretextObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder.
        """
        width = encoder_of(encoders, self.modality).width * self.task.parts
        head = self.predictor.build(width, self.task.classes)
        return PretextObjective(self.modality, self.view, self.choice, self.task, head)


class PretextObjective(Objective):
    """Pretext task: cross entropy of the label by which a view was changed.

    Gidaris et al. 2018 (rotation), Noroozi and Favaro 2016 (jigsaw), Doersch et al. 2015 (context), Lee et al. 2017 (order); see
    `TaskConfig`. Labels are drawn for each sample, whatever its content, and the view is changed on the device, so that nothing
    else can tell them. Where the task makes several parts of a view, each is encoded alone, and the head reads all of them.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is changed.
        choice: kind of view with the label, int64 [B].
        task: changes the view.
        head: [B, parts * D] -> scores [B, K].
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(self, modality: str, view: str, choice: str, task: PretextTask, head: nn.Module) -> None:
        super().__init__()
        self.modality, self.view, self.choice, self.task, self.head = modality, view, choice, task, head

    def needs(self) -> Needs:
        """One view and one label."""
        return {self.modality: {self.view: 1, self.choice: 1}}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that the task can be made of the view, and that the encoder takes its parts."""
        self.encode(batch, ctx)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Scores "prediction" [B, R, K] and labels "target" [B, R] of the R orders in which the head reads the parts.

        Raises:
            ValueError: the view has another shape than the task needs, or labels are K or more.
        """
        x, label = (batch.view(self.modality, f"{kind}0") for kind in (self.view, self.choice))
        # On a GPU the host would wait for the values; the cross entropy refuses them there, in other words.
        if label.ndim != 1 or (label.device.type == "cpu" and int(label.max()) >= self.task.classes):
            raise ValueError(
                f"got labels {list(label.shape)} up to {label.max()} from modalities.{self.modality}.views.{self.choice}, "
                f"wanted [B] below {self.task.classes}: {{kind: choice, choices: {self.task.classes}}}"
            )
        parts = self.task.make(x, label, batch.index, ctx.generator("pretext").initial_seed())
        views = {str(number): part.contiguous() for number, part in enumerate(parts)}
        changed = replace(batch, views={**batch.views, self.modality: views})
        found = ctx.features(changed, self.modality, [*views], pooled_only=True)
        read, labels = zip(*self.task.readings(label), strict=True)
        parts_read = torch.stack([torch.cat([found[number].pooled for number in order], 1) for order in read], 1)
        prediction = at_least_float32(self.head(parts_read))
        return {"prediction": prediction, "target": torch.stack(labels, 1), **ctx.presence(batch, self.modality)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: accuracy, and the loss of a guess, ln K."""
        present = Present(latents)
        scores, label = present.rows(latents["prediction"]), present.rows(latents["target"])
        costs = F.cross_entropy(scores.flatten(0, 1), label.flatten(), reduction="none").view(label.shape)
        loss = distributed.mean(costs.mean(1))
        right = (scores.detach().argmax(-1) == label).to(scores.dtype).mean(1)

        def measure() -> dict[str, Tensor]:
            hits, rows = distributed.sum_and_count(right)
            chance = torch.full_like(hits, math.log(self.task.classes))
            return {"accuracy": hits / rows.clamp(min=1), "chance_loss": chance}

        return LossOutput({"pretext": loss}, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
