"""Targets of JEPA that are a teacher's assignments of hidden tokens to prototypes: masked self-distillation (MaskCLIP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Schedule, Scheduled
from mmssl.core.teacher import Momentum, Teacher
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.prototypes import WeightNormPrototypes, truncated_normal
from mmssl.losses.assignments import assignment_metrics, masked_assignment_cross_entropy
from mmssl.objectives.common import at_least_float32, couples_rows
from mmssl.objectives.parts.latent_targets import LatentTargets, LatentTargetsBase, Predicted
from mmssl.objectives.parts.patch_assignments import PrototypeScorer
from mmssl.objectives.parts.teacher_targets import TeacherTargets, TeacherTargetsConfig


class PrototypeTargets(LatentTargets):
    """Assignments of hidden tokens to prototypes, as a teacher of head and prototypes gives them to what it sees (MaskCLIP).

    Dong et al. 2023 (arXiv:2208.12262), section 3.3: masked self-distillation. The mean of the cross entropy is over all hidden
    tokens. A uniform teacher costs ln K; one that gives all tokens to one prototype costs 0 and has entropy 0.

    Args:
        scorer: head and prototypes, and their teachers.
        targets: makes the teacher's scores targets.
        temperature: of the student.
        teacher_temperature: by step.
    """

    def __init__(
        self, scorer: PrototypeScorer, targets: TeacherTargets, temperature: float, teacher_temperature: Schedule
    ) -> None:
        super().__init__()
        self.head, self.prototypes, self.targets = scorer.head, scorer.prototypes, targets
        self.teacher_head, self.teacher_prototypes = scorer.teacher_head, scorer.teacher_prototypes
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.couples_samples = couples_rows(self) or targets.couples_samples

    def of(self, features: Features) -> Tensor:
        """The teacher's tokens."""
        assert features.tokens is not None
        return at_least_float32(features.tokens)

    def encode(self, predicted: Sequence[Predicted], whole: Tensor | None) -> Latents:
        """Predictions and the teacher's tokens at hidden places [B, n, D]."""
        return {
            "prediction": torch.cat([_of_samples(one.tokens) for one in predicted], 1),
            "target": torch.cat([_of_samples(one.targets) for one in predicted], 1),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: see `assignment_metrics`. Keeps the teacher's embeddings [n, E]."""
        present = Present(latents, 2 if self.couples_samples else 1)
        scorer = PrototypeScorer(self.head, self.prototypes, self.teacher_head, self.teacher_prototypes)
        prediction, target = (present.rows(latents[name]) for name in ("prediction", "target"))
        hidden = torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
        embeddings, scores = scorer.teacher(target.flatten(0, 1))
        targets = self.targets(scores, self.teacher_temperature(ctx.step))
        found = scorer.student(prediction.flatten(0, 1))
        loss = masked_assignment_cross_entropy(targets, found, hidden, self.temperature)
        measure = partial(assignment_metrics, loss.detach(), targets, usage=targets)
        return LossOutput(present.terms({"jepa": loss}), measure, {"teacher/embeddings": embeddings})

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Entropy of the targets and divergence from them; chance is the loss of a uniform guess."""
        return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("target_entropy", "kl")})

    def update(self, latents: Latents) -> None:
        """Move the centre."""
        self.targets.update(latents["teacher/embeddings"], self.teacher_prototypes)


class PrototypeTargetsConfig(LatentTargetsBase):
    """The teacher's assignments of hidden tokens to prototypes: masked self-distillation (MaskCLIP); see `PrototypeTargets`.

    Attributes:
        prototypes: K, number of prototypes; 1024 to 4096 on small data.
        embedding: E, size of the embeddings that prototypes score.
        head: projection head, not used after training.
        temperature: divisor of the student's scores.
        teacher_temperature: divisor of the teacher's scores, lower: it sharpens.
        targets: how the teacher's scores become targets that do not collapse: centring, sinkhorn.
    """

    takes_beta: ClassVar[bool] = False

    kind: Literal["prototypes"] = "prototypes"
    prototypes: int = Field(ge=2)
    embedding: int = Field(default=256, gt=0)
    head: MLPProjectionConfig
    temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: Annotated[Scheduled, Bounds(gt=0)]
    targets: TeacherTargetsConfig

    def build(
        self, encoder: Encoder, modality: str, beta: float | None, momentum: Momentum, plan: Plan
    ) -> PrototypeTargets:
        """See the base."""
        head = truncated_normal(self.head.build(encoder.width, self.embedding))
        prototypes = WeightNormPrototypes(self.embedding, self.prototypes)
        scorer = PrototypeScorer(head, prototypes, Teacher(head, momentum), Teacher(prototypes, momentum))
        temperature = plan.schedule(self.teacher_temperature, "teacher_temperature")
        return PrototypeTargets(scorer, self.targets.build(self.prototypes), self.temperature, temperature)


def _of_samples(x: Tensor) -> Tensor:
    """[R, B, n, D] -> [B, R * n, D]."""
    return x.transpose(0, 1).flatten(1, 2)
