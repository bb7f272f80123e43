"""DeepCluster v2: views predict the cluster of their sample; all samples are clustered again in every epoch (k-means)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.config import Duration, PositiveDuration
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.bank import SampleBank
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.deepcluster import prototype_cross_entropy
from mmssl.objectives.common import couples_rows, encoder_of
from mmssl.objectives.parts.clusterings import Clusterings
from mmssl.objectives.parts.multi_crop import Crops, MultiCropConfig, stacked


class DeepClusterV2Config(MultiCropConfig):
    """Settings of DeepCluster v2 on global and local views of one modality; see `DeepClusterV2Objective`.

    A checkpoint holds two embeddings of every training sample, 1.3 GB for ImageNet. A process holds twice as much: a step that is
    skipped is undone from a copy.

    Attributes:
        prototypes: K, clusters of each clustering. DeepCluster v2: 3000 for the 1.28 million pictures of ImageNet.
        clusterings: H, their number; the first is of the first global view, the second of the other, and so on. DeepCluster v2: 3.
        temperature: divisor of the cosines with prototypes. DeepCluster v2: 0.1.
        every: training from one clustering to the next; the first is before the first step.
        iterations: of k-means. DeepCluster v2: 10.
        embedding: E, output of the head. DeepCluster v2: 128.
        head: projection head, not used after training. DeepCluster v2: 2 layers, hidden 2048, norm batch.
    """

    kind: Literal["deepcluster_v2"] = "deepcluster_v2"
    prototypes: int = Field(ge=2)
    clusterings: int = Field(default=3, ge=1)
    temperature: float = Field(gt=0)
    every: PositiveDuration = Duration("1 epochs")
    iterations: int = Field(default=10, ge=1)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> DeepClusterV2Objective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder; more prototypes than training samples.
        """
        if 0 < plan.samples < self.prototypes:
            raise ValueError(
                f"prototypes: got {self.prototypes}, wanted at most {plan.samples}, the number of training samples"
            )
        crops = self.crops()
        return DeepClusterV2Objective(
            crops,
            self.head.build(encoder_of(encoders, self.modality).width, self.embedding),
            SampleBank(plan.samples, len(crops.global_views), self.embedding),
            Clusterings(self.clusterings, self.prototypes, self.embedding, plan.samples),
            self.temperature,
            max(1, plan.steps(self.every)),
            self.iterations,
        )


class DeepClusterV2Objective(Objective):
    """DeepCluster v2: cross-entropy of the cosines of views with prototypes, against the cluster of their sample.

    Caron et al. 2020 (arXiv:2006.09882), appendix D. Prototypes are the centroids of spherical k-means over the embeddings of all
    samples, and no parameters. The first clustering is of embeddings that a pass over the samples makes, of the views of their
    first epoch, with the encoder in evaluation mode and batch norm in the head over all samples; later ones are of the embeddings
    that the steps since have made. A sample that could not be read has no cluster and costs nothing.

    Args:
        crops: global and local views.
        head: [rows, D] -> [rows, E].
        bank: latest embeddings of the global views of every training sample.
        clusterings: prototypes, and the cluster of every training sample.
        temperature: of the cosines.
        every: steps from one clustering to the next.
        iterations: of k-means.
    """

    accepts_absent = True

    def __init__(
        self,
        crops: Crops,
        head: nn.Module,
        bank: SampleBank,
        clusterings: Clusterings,
        temperature: float,
        every: int,
        iterations: int,
    ) -> None:
        super().__init__()
        self.crops, self.head = crops, head
        self.temperature, self.every, self.iterations = temperature, every, iterations
        self.reduction = Reduction.STATISTIC if couples_rows(self) else Reduction.LOCAL
        self.least_samples = 2 if couples_rows(self) else 1
        self.bank, self.clusterings = bank, clusterings

    def needs(self) -> Needs:
        """Global and local views."""
        return self.crops.needs()

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of every view, under its name, and "index" [B]."""
        return {"index": batch.index, **self.crops.encode(batch, ctx, self.crops.views)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics of the last clustering: perplexity of cluster sizes, and agreement with the one before (NMI)."""
        present = Present(latents, self.least_samples)
        pooled, index = stacked(present, latents, self.crops.views), present.rows(latents["index"])
        z = F.normalize(self.head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2]), dim=-1)
        found = self.clusterings
        losses = prototype_cross_entropy(z, found.prototypes, found.clusters[index], self.temperature)
        metrics = {"perplexity": found.perplexity, "agreement": found.agreement}
        kept = {"bank/index": index, "bank/rows": z.detach()[: self.bank.rows.shape[1]].transpose(0, 1)}
        return LossOutput(present.terms({"cluster": distributed.mean(losses)}), lambda: metrics, kept)

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Write the embeddings of the global views into the bank."""
        self.bank.write(latents["bank/index"], latents["bank/rows"])

    def refresh_every(self) -> int:
        """The interval of clustering."""
        return self.every

    def refresh_needs(self) -> Needs:
        """The global views."""
        return {self.crops.modality: self.crops.kinds}

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        """Cluster the bank; before the first step, fill it by a pass.

        Raises:
            ValueError: fewer samples have an embedding than there are prototypes.
        """
        if ctx.step == 0:
            self._fill(batches, ctx)
        self.clusterings.fit(self.bank, self.iterations, ctx.generator("starts"))
        return []

    def _fill(self, batches: Iterable[Batch], ctx: StepContext) -> None:
        """Write embeddings of all samples into the bank. The head, which couples processes, comes after the pass."""
        names, width = self.crops.global_views, ctx.encoders[self.crops.modality].width
        numbers, rows = [self.clusterings.clusters.new_empty(0)], [self.bank.rows.new_empty(len(names), 0, width)]
        for batch in batches:
            latents = self.crops.encode(batch, ctx, names)
            here = latents.get("present", torch.ones_like(batch.index, dtype=torch.bool))
            numbers.append(batch.index[here])
            rows.append(torch.stack([latents[name][here] for name in names]))
        distributed.gather_objects(None)  # where a process could not read, all learn it here
        z = torch.stack([F.normalize(self.head(x), dim=-1) for x in torch.cat(rows, 1)], 1)
        self.bank.write(torch.cat(numbers), z)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one global view."""
        return {self.crops.modality: self.crops.global_views[0]}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Perplexity of cluster sizes and agreement of the last two clusterings; chance is ln K."""
        figures = {name: scalars[name] for name in ("perplexity", "agreement")}
        return Headline(math.log(self.clusterings.prototypes.shape[1]), figures)
