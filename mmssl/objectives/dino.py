"""DINO, iBOT and DINOv2: from any view, predict the assignment to prototypes that a teacher gives to another, and to patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.config import Duration
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Schedule, Scheduled
from mmssl.core.teacher import Momentum, Teacher
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.prototypes import WeightNormPrototypes, truncated_normal
from mmssl.losses.assignments import assignment_metrics, view_cross_entropy
from mmssl.losses.koleo import koleo
from mmssl.objectives.common import couples_rows, encoder_of
from mmssl.objectives.parts.multi_crop import Crops, MultiCropConfig, cancel_gradients, stacked
from mmssl.objectives.parts.patch_assignments import PatchAssignments, PatchAssignmentsConfig, PrototypeScorer
from mmssl.objectives.parts.teacher_targets import TeacherTargets, TeacherTargetsConfig


class DinoConfig(MultiCropConfig):
    """Settings of DINO on global and local views of one modality; see `DinoObjective`.

    Attributes:
        momentum: of the teacher of encoder and head. DINO: cosine from 0.996 to 1; from 0.9995 for batches of 256.
        temperature: divisor of the student's scores. DINO: 0.1.
        teacher_temperature: divisor of the teacher's scores, lower: it sharpens. DINO: 0.04, linear to 0.07 over 30 epochs; 0.02 to
            0.04 on small data.
        targets: how the teacher's scores become targets that do not collapse: centring (DINO) or sinkhorn (DINOv2).
        prototypes: K, number of prototypes. DINO: 65536; 1024 to 4096 on small data.
        frozen_prototypes: how long, from the start of the run, prototypes do not move. DINO: 1 epoch.
        embedding: E, size of the embeddings that prototypes score. DINO: 256.
        head: projection head, not used after training. DINO: 3 layers, hidden 2048, activation gelu, norm none; batch for a ResNet.
        patches: the same at masked patches of the global views (iBOT, DINOv2); null: views alone (DINO).
        koleo: weight of the KoLeo regulariser of each global view, which spreads samples out. DINOv2: 0.1.
    """

    kind: Literal["dino"] = "dino"
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    temperature: float = Field(gt=0)
    teacher_temperature: Annotated[Scheduled, Bounds(gt=0)]
    targets: TeacherTargetsConfig
    prototypes: int = Field(ge=2)
    frozen_prototypes: Duration = Duration("0 steps")
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig
    patches: PatchAssignmentsConfig | None = None
    koleo: float = Field(default=0.0, ge=0)

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> DinoObjective:
        """Build the objective for these encoders."""
        width, momentum = encoder_of(encoders, self.modality).width, plan.schedule(self.momentum, "momentum")
        head = truncated_normal(self.head.build(width, self.embedding))
        patches = None
        if self.patches is not None:
            patches = self.patches.build(width, self.embedding, self.prototypes, momentum)
        return DinoObjective(
            self.crops(),
            head,
            WeightNormPrototypes(self.embedding, self.prototypes),
            self.targets.build(self.prototypes),
            momentum,
            self.temperature,
            plan.schedule(self.teacher_temperature, "teacher_temperature"),
            plan.steps_within(self.frozen_prototypes, "frozen_prototypes"),
            patches,
            self.koleo,
        )


class DinoObjective(Objective):
    """DINO: cross entropy between the teacher's assignments of global views and the student's of all other views.

    Caron et al. 2021 (arXiv:2104.14294); a mean over pairs of different views. Teachers of encoder, head and prototypes see global
    views only. Views of one size go through the encoder in one call, all views through the head, which is part of the criterion:
    batch norm and Sinkhorn-Knopp see the views of all processes. Two collapses: a uniform teacher, which costs ln K, and one that
    gives all samples to one prototype, which costs 0 and has entropy 0. The teacher is evaluated.

    With `patches` it is iBOT (Zhou et al. 2022, arXiv:2111.07832), and with `koleo` too DINOv2 (Oquab et al. 2023,
    arXiv:2304.07193): the student sees masked global views, and also predicts the teacher's assignments of masked patches.

    Args:
        crops: global and local views.
        head: [rows, D] -> [rows, E].
        prototypes: unit-norm [rows, E] -> scores [rows, K].
        targets: makes the teacher's scores targets.
        momentum: of the teachers of encoder, head and prototypes.
        temperature: of the student.
        teacher_temperature: by step.
        frozen_steps: number of first steps in which prototypes do not move.
        patches: the loss at masked patches.
        koleo: weight of the KoLeo regulariser.
    """

    accepts_absent = True

    def __init__(
        self,
        crops: Crops,
        head: nn.Module,
        prototypes: nn.Module,
        targets: TeacherTargets,
        momentum: Momentum,
        temperature: float,
        teacher_temperature: Schedule,
        frozen_steps: int = 0,
        patches: PatchAssignments | None = None,
        koleo: float = 0.0,
    ) -> None:
        super().__init__()
        self.crops, self.momentum = crops, momentum
        self.head, self.prototypes, self.targets = head, prototypes, targets
        self.teacher_head, self.teacher_prototypes = Teacher(head, momentum), Teacher(prototypes, momentum)
        self.temperature, self.teacher_temperature, self.frozen_steps = temperature, teacher_temperature, frozen_steps
        self.patches, self.koleo = patches, koleo
        coupled = couples_rows(self) or targets.couples_samples or koleo > 0
        coupled |= patches is not None and patches.targets.couples_samples
        self.reduction = Reduction.STATISTIC if coupled else Reduction.LOCAL
        self.least_samples = 2 if coupled else 1

    def needs(self) -> Needs:
        """Global and local views, and masks of the global ones."""
        needs, modality = self.crops.needs(), self.crops.modality
        masks = {self.patches.mask: len(self.crops.global_views)} if self.patches else {}
        return {modality: {**needs[modality], **masks}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """With patches: tokens, and replacing tokens (mask_replace)."""
        wanted = {Encoder.TOKENS, Encoder.MASK_REPLACE} if self.patches else ()
        return {self.crops.modality: frozenset(wanted)} if wanted else {}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that masks are those of the encoder's tokens."""
        if self.patches:
            self.encode(batch, ctx)

    def teachers(self) -> Mapping[str, Momentum]:
        """A teacher of the encoder."""
        return {self.crops.modality: self.momentum}

    def evaluated(self) -> Mapping[str, Network]:
        """The teacher."""
        return {self.crops.modality: "teacher"}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of every view, under its name, and the teacher's of global views, "teacher/<name>".

        Raises:
            ValueError: masks are not those of the encoder's tokens.
        """
        modality, local = self.crops.modality, self.crops.views[len(self.crops.global_views) :]
        if self.patches is None:
            found = self.crops.encode(batch, ctx, self.crops.views)
        else:
            found = self.patches.encode(batch, ctx, modality, self.crops.global_views)
            found |= self.crops.encode(batch, ctx, local)
        teacher = self.crops.encode(batch, ctx, self.crops.global_views, "teacher")
        return found | {f"teacher/{name}": teacher[name] for name in self.crops.global_views}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """A term of views, and with `patches` and `koleo` one of each; metrics: see `assignment_metrics`, of patches "patch_...".

        Keeps the teacher's embeddings [rows, E].
        """
        present, scorer = Present(latents, self.least_samples), self._scorer
        student = stacked(present, latents, self.crops.views)
        teacher = stacked(present, latents, [f"teacher/{name}" for name in self.crops.global_views])
        flat = scorer.student(student.flatten(0, 1))
        scores = flat.view(*student.shape[:2], flat.shape[1])
        embeddings, given = scorer.teacher(teacher.flatten(0, 1))
        temperature = self.teacher_temperature(ctx.step)
        targets = self.targets(given, temperature)
        loss = view_cross_entropy(targets.unflatten(0, teacher.shape[:2]), scores, self.temperature)
        terms, kept, seen = {"dino": loss}, {"teacher/embeddings": embeddings}, loss.detach()
        of_patches: tuple[Tensor, Tensor] | None = None
        if self.patches:
            temperatures = self.temperature, temperature
            cost, chosen, kept["teacher/patches"] = self.patches.loss(
                present, latents, self.crops.global_views, scorer, temperatures
            )
            terms["patches"], of_patches = self.patches.weight * cost, (cost.detach(), chosen)
        if self.koleo:
            spread = [koleo(x, present.gather(x), present.offset(x)) for x in student[: len(teacher)]]
            terms["koleo"] = self.koleo * torch.stack(spread).sum()

        def measure() -> dict[str, Tensor]:
            found = assignment_metrics(seen, targets, usage=targets)
            if of_patches is not None:
                of_them = assignment_metrics(*of_patches, usage=of_patches[1])
                found |= {f"patch_{name}": x for name, x in of_them.items() if name not in ("chance_loss", "kl")}
            return found

        return LossOutput(present.terms(terms), measure, kept)

    def before_update(self, ctx: StepContext) -> None:
        """Cancel the gradient of the prototypes in the first steps."""
        if ctx.step < self.frozen_steps:
            cancel_gradients(self.prototypes)
            if self.patches:
                self.patches.cancel_prototypes()

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Move the centre by what the teacher said in this step."""
        self.targets.update(latents["teacher/embeddings"], self.teacher_prototypes)
        if self.patches:
            self.patches.update(latents["teacher/patches"], self._scorer)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one global view."""
        return {self.crops.modality: self.crops.global_views[0]}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Entropy of the targets and divergence from them; chance is the loss of a uniform guess."""
        return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("target_entropy", "kl")})

    @property
    def _scorer(self) -> PrototypeScorer:
        return PrototypeScorer(self.head, self.prototypes, self.teacher_head, self.teacher_prototypes)
