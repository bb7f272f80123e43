"""Self-labelling (SeLA, DeepCluster): samples predict labels that a pass over all samples gives them, now and then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.config import Duration, PositiveDuration
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.losses.deepcluster import UNASSIGNED
from mmssl.losses.kmeans import cluster_perplexity, normalised_mutual_information
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of
from mmssl.objectives.parts.labellings import Labelling, LabellingConfig


class SelfLabelsConfig(ObjectiveConfig):
    """Settings of self-labelling for one modality; see `SelfLabelsObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view that predicts the label.
        label_view: kind of view that the label is given to.
        labelling: how labels are given: optimal_transport (SeLA), clusters (DeepCluster).
        labels: K, their number. SeLA: 3000, DeepCluster: 10000, for the 1.28 million pictures of ImageNet.
        every: training from one labelling to the next; the first is before the first step.
    """

    kind: Literal["self_labels"] = "self_labels"
    modality: Name
    view: str
    label_view: str = "eval"
    labelling: LabellingConfig
    labels: int = Field(ge=2)
    every: PositiveDuration = Duration("1 epochs")

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SelfLabelsObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder; more labels than training samples.
        """
        if 0 < plan.samples < self.labels:
            raise ValueError(
                f"labels: got {self.labels}, wanted at most {plan.samples}, the number of training samples"
            )
        width = encoder_of(encoders, self.modality).width
        return SelfLabelsObjective(
            self.modality,
            self.view,
            self.label_view,
            self.labelling,
            nn.Linear(width, self.labels),
            max(1, plan.steps(self.every)),
            plan.samples,
        )


class SelfLabelsObjective(Objective):
    """Self-labelling: cross entropy of labels that come from the features of all samples.

    SeLA (Asano et al. 2020, arXiv:1911.05371), with one head; DeepCluster (Caron et al. 2018, arXiv:1807.05520), where a sample
    counts by one over the size of its cluster, while the authors' code draws clusters equally often. A sample that could not be
    read has no label and costs nothing.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that predicts the label.
        label_view: kind of view that the label is given to.
        labelling: gives the labels.
        head: classifier [B, D] -> [B, K], not used after training.
        every: steps from one labelling to the next.
        samples: N, training samples of the run.

    Attributes:
        labels: [N] int64, or `UNASSIGNED`.
        weights: [K], weight of each label in the loss.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True
    labels: Tensor
    weights: Tensor
    used: Tensor
    agreement: Tensor

    def __init__(
        self,
        modality: str,
        view: str,
        label_view: str,
        labelling: Labelling,
        head: nn.Linear,
        every: int,
        samples: int,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.label_view = modality, view, label_view
        self.labelling, self.head, self.every = labelling, head, every
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        self.register_buffer("labels", torch.full((samples,), UNASSIGNED))
        self.register_buffer("weights", torch.ones(head.out_features))
        self.register_buffer("used", torch.zeros(()))
        self.register_buffer("agreement", torch.zeros(()))

    def needs(self) -> Needs:
        """One view."""
        return {self.modality: {self.view: 1}}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features "raw/features" [B, D], and "index" [B]."""
        (found,) = ctx.features(batch, self.modality, [f"{self.view}0"], pooled_only=True)
        return {"raw/features": found.pooled, "index": batch.index, **ctx.presence(batch, self.modality)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: accuracy, labels in use, agreement with the labelling before (NMI), and the chance loss, ln K."""
        present = Present(latents)
        label = self.labels[present.rows(latents["index"])]
        scores = self.head(present.rows(latents["raw/features"]))
        known = label.clamp(min=0)
        weight = self.weights[known] * (label != UNASSIGNED)
        costs = F.cross_entropy(scores, known, reduction="none")
        loss = distributed.mean(costs * weight.to(costs.dtype))
        right = (scores.detach().argmax(1) == label).to(scores.dtype)
        used, agreement = self.used.clone(), self.agreement.clone()

        def measure() -> dict[str, Tensor]:
            hits, rows = distributed.sum_and_count(right)
            chance = torch.full_like(hits, math.log(self.head.out_features))
            metrics = {"accuracy": hits / rows.clamp(min=1), "chance_loss": chance}
            return metrics | {"labels_used": used, "agreement": agreement}

        return LossOutput({"label": loss}, measure)

    def refresh_every(self) -> int:
        """The interval of labelling."""
        return self.every

    def refresh_needs(self) -> Needs:
        """The view that labels are given to."""
        return {self.modality: {self.label_view: 1}}

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        """Give every sample a label; with clusters, the classifier begins anew.

        Raises:
            ValueError: samples that k-means starts from could not be read.
        """
        width, count = self.head.in_features, self.head.out_features
        index, rows = [self.labels.new_empty(0)], [self.head.weight.new_empty(0, width)]
        for batch in batches:
            (found,) = ctx.features(batch, self.modality, [f"{self.label_view}0"], pooled_only=True)
            here = ctx.presence(batch, self.modality).get("present", torch.ones_like(batch.index, dtype=torch.bool))
            index.append(batch.index[here])
            rows.append(found.pooled[here].to(self.head.weight.dtype))
        distributed.gather_objects(None)  # where a process could not read, all learn it here
        numbers, features = torch.cat(index), torch.cat(rows)
        random = ctx.generator("labels")
        chosen = torch.randperm(max(len(self.labels), count), generator=random)[:count].to(numbers.device)
        found_labels = self.labelling.labels(numbers, features, self.head(features), chosen)
        before = self.labels.clone()
        self.labels[distributed.gather_uneven(numbers)] = distributed.gather_uneven(found_labels)
        self._count(before)
        if not self.labelling.new_head:
            return []
        self.head.weight.copy_(torch.empty(count, width).normal_(std=0.01, generator=random))
        self.head.bias.zero_()
        return ["head.weight", "head.bias"]

    def _count(self, before: Tensor) -> None:
        """Note how often labels are used, how much they agree with those before, and what weight each has."""
        known = self.labels[self.labels != UNASSIGNED]
        both = (self.labels != UNASSIGNED) & (before != UNASSIGNED)
        self.used.copy_(cluster_perplexity(known))
        if both.any():
            self.agreement.copy_(normalised_mutual_information(self.labels[both], before[both]))
        if not self.labelling.balanced:
            sizes = torch.bincount(known, minlength=len(self.weights))
            self.weights.copy_(len(known) / (len(self.weights) * sizes.clamp(min=1)))

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features."""
        return {self.modality: "raw/features"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy, and how many labels are in use."""
        return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("accuracy", "labels_used")})
