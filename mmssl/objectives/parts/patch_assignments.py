"""The patch loss of iBOT and DINOv2: at masked patches, predict the assignment to prototypes that a teacher gives to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.batch import Batch, view_names
from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.objective import Latents
from mmssl.core.presence import Present
from mmssl.core.teacher import Momentum, Teacher
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.prototypes import WeightNormPrototypes, truncated_normal
from mmssl.losses.assignments import masked_assignment_cross_entropy
from mmssl.objectives.parts.multi_crop import cancel_gradients
from mmssl.objectives.parts.teacher_targets import TeacherTargets, TeacherTargetsConfig


class PatchAssignmentsConfig(Config):
    """Settings of the patch loss of iBOT (arXiv:2111.07832) and DINOv2 (arXiv:2304.07193).

    Attributes:
        mask: kind of view with the masked patches of the global views, one for each: `blocks`.
        weight: of the loss, beside that of views. iBOT and DINOv2: 1.
        targets: how the teacher's scores of patches become targets: centring (iBOT), sinkhorn (DINOv2).
        head: projection head of patches; null: they share head and prototypes with views (iBOT).
        prototypes: number of prototypes of patches, with a head of their own.
    """

    mask: str
    weight: float = Field(default=1.0, gt=0)
    targets: TeacherTargetsConfig
    head: MLPProjectionConfig | None = None
    prototypes: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.head is None) != (self.prototypes is None):
            raise ValueError(
                "got one of head and prototypes, wanted both (DINOv2), or neither (iBOT: shared with views)"
            )
        return self

    def build(self, width: int, embedding: int, prototypes: int, momentum: Momentum) -> PatchAssignments:
        """Build the part, for an encoder of this width, embeddings of this size, and this number of prototypes of views."""
        own = None
        if self.head is not None and self.prototypes is not None:
            prototypes = self.prototypes
            head = truncated_normal(self.head.build(width, embedding))
            scores = WeightNormPrototypes(embedding, prototypes)
            own = PrototypeScorer(head, scores, Teacher(head, momentum), Teacher(scores, momentum))
        return PatchAssignments(self.mask, self.weight, self.targets.build(prototypes), own, width)


@dataclass(frozen=True)
class PrototypeScorer:
    """A projection head and prototypes, and their teachers.

    Attributes:
        head: [rows, D] -> [rows, E].
        prototypes: unit-norm [rows, E] -> scores [rows, K].
        teacher_head: follows the head.
        teacher_prototypes: follows the prototypes.
    """

    head: nn.Module
    prototypes: nn.Module
    teacher_head: nn.Module
    teacher_prototypes: nn.Module

    def student(self, x: Tensor) -> Tensor:
        """Scores [rows, K] of features [rows, D]."""
        scores: Tensor = self.prototypes(F.normalize(self.head(x), dim=-1))
        return scores

    def teacher(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings [rows, E] and scores [rows, K] of features [rows, D]."""
        embeddings = F.normalize(self.teacher_head(x), dim=-1)
        return embeddings, self.teacher_prototypes(embeddings)


class PatchAssignments(nn.Module):
    """Cross entropy of the teacher's and the student's assignments of masked patches of the global views.

    The student sees masked views: a learned vector in place of hidden patches. Only masked patches go through the head.

    Args:
        mask: kind of view with masks [B, T] bool.
        weight: of the loss.
        targets: makes the teacher's scores targets.
        own: head and prototypes; None: those of the views.
        width: D.
    """

    def __init__(
        self, mask: str, weight: float, targets: TeacherTargets, own: PrototypeScorer | None, width: int
    ) -> None:
        super().__init__()
        self.mask, self.weight, self.targets = mask, weight, targets
        self.own = (
            nn.ModuleList()
            if own is None
            else nn.ModuleList([own.head, own.prototypes, own.teacher_head, own.teacher_prototypes])
        )
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def encode(self, batch: Batch, ctx: StepContext, modality: str, views: Sequence[str]) -> Latents:
        """Of masked global views: pooled features "NAME" [B, D], tokens "NAME/tokens" and "NAME/teacher" [B, T, D], "NAME/mask".

        Raises:
            ValueError: masks are not those of the encoder's tokens.
        """
        masks = [batch.view(modality, name) for name in view_names(self.mask, len(views))]
        teacher = ctx.features(batch, modality, views, network="teacher")
        for mask, whole in zip(masks, teacher, strict=True):
            if whole.tokens is None or mask.dtype != torch.bool or mask.shape != whole.tokens.shape[:2]:
                wanted = None if whole.tokens is None else list(whole.tokens.shape[:2])
                raise ValueError(
                    f"got masks {mask.dtype} {list(mask.shape)} from modalities.{modality}.views.{self.mask}, wanted bool {wanted} "
                    "for the tokens of the global views: give it the encoder's patches, or number of tokens"
                )
        student = ctx.features(batch, modality, views, replace=(masks, self.mask_token))
        found: Latents = {}
        for name, mask, seen, whole in zip(views, masks, student, teacher, strict=True):
            assert seen.tokens is not None
            assert whole.tokens is not None
            found |= {
                name: seen.pooled,
                f"{name}/tokens": seen.tokens,
                f"{name}/teacher": whole.tokens,
                f"{name}/mask": mask,
            }
        return found

    def loss(
        self, present: Present, latents: Mapping[str, Tensor], views: Sequence[str], shared: PrototypeScorer,
        temperatures: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The loss [], the targets [M, K] and the teacher's embeddings [M, E] of masked patches.

        Args:
            present: samples with the modality.
            latents: of `encode`.
            views: names of the global views.
            shared: head and prototypes of views.
            temperatures: of the student and of the teacher.
        """
        scorer = self._scorer(shared)
        mask, seen, whole = (
            torch.cat([present.rows(latents[f"{name}/{what}"]) for name in views])
            for what in ("mask", "tokens", "teacher")
        )
        embeddings, scores = scorer.teacher(whole[mask])
        targets = self.targets(scores, temperatures[1])
        loss = masked_assignment_cross_entropy(targets, scorer.student(seen[mask]), mask, temperatures[0])
        return loss, targets, embeddings

    def update(self, embeddings: Tensor, shared: PrototypeScorer) -> None:
        """Move the centre by the embeddings of a step."""
        self.targets.update(embeddings, self._scorer(shared).teacher_prototypes)

    def cancel_prototypes(self) -> None:
        """Leave own prototypes out of the next update."""
        if self.own:
            cancel_gradients(self.own[1])

    def _scorer(self, shared: PrototypeScorer) -> PrototypeScorer:
        return PrototypeScorer(*self.own) if self.own else shared
