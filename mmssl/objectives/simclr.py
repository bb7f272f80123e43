"""SimCLR and COLA: two random views of each sample are positives, the views of other samples of the global batch are negatives."""

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
from mmssl.heads.bilinear import BilinearSimilarity
from mmssl.heads.projection import MLPProjectionConfig
from mmssl.losses.nt_xent import nt_xent, nt_xent_accuracy
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


class SimClrConfig(ObjectiveConfig):
    """Settings of SimCLR on two views of one modality; see `SimClrObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        temperature: divisor of the similarities. SimCLR: 0.1 on large images, 0.5 on small ones; SLIP: 0.1. COLA: 1, as its matrix
            learns the scale.
        embedding: E, output of the head. SimCLR: 128; SLIP: 256; COLA: 512.
        head: projection head, not used after training; null: one linear layer. SimCLR: 2 layers, hidden 2048, norm batch,
            norm_last. COLA: null.
        similarity: "cosine"; or "bilinear", as in COLA: of layer-normalised tanh features with a learned matrix between them. Then
            a first view finds the second view of its sample among those of all, and not the other way round.
    """

    kind: Literal["simclr"] = "simclr"
    modality: Name
    view: TwoViews
    temperature: float = Field(gt=0)
    embedding: int = Field(gt=0)
    head: MLPProjectionConfig | None
    similarity: Literal["cosine", "bilinear"] = "cosine"

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SimClrObjective:
        """Build the objective for these encoders."""
        width = encoder_of(encoders, self.modality).width
        head = nn.Linear(width, self.embedding) if self.head is None else self.head.build(width, self.embedding)
        bilinear = BilinearSimilarity(self.embedding) if self.similarity == "bilinear" else None
        return SimClrObjective(self.modality, self.view, head, self.temperature, bilinear)


class SimClrObjective(Objective):
    """SimCLR: NT-Xent over the global batch, after a projection head. COLA: one-way InfoNCE of bilinear similarities.

    Chen et al. 2020 (arXiv:2002.05709); Saeed, Grangier and Zeghidour 2021 (arXiv:2010.10915). Both views go through encoder and
    head in one call. The head is part of the criterion: its batch norm sees all views of all processes, so views do not reveal
    their batch, and micro-batches change nothing.

    Args:
        modality: modality of the encoder to train.
        view: kind of the two views; two kinds, `[crop, crop_b]`: one view of each.
        head: [rows, D] -> [rows, E].
        temperature: divisor of the similarities.
        bilinear: similarity of COLA, in place of the cosine; None: the cosine.
    """

    least_samples = 2
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: TwoViews,
        head: nn.Module,
        temperature: float,
        bilinear: BilinearSimilarity | None = None,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.temperature = modality, view, temperature
        self.head, self.bilinear = head, bilinear
        batch_norm = couples_rows(head)
        self.reduction = Reduction.STATISTIC if batch_norm else Reduction.GATHER

    def needs(self) -> Needs:
        """Two views."""
        return {self.modality: kinds_of(self.view)}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the views, "0" and "1"."""
        return encode_two_views(batch, ctx, self.modality, self.view, together=True)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: in-batch accuracy and the chance loss, ln(2G - 1), or ln G of bilinear similarities."""
        present = Present(latents, self.least_samples)
        pooled = torch.cat([present.rows(latents["0"]), present.rows(latents["1"])])
        a, b = self.head(pooled).chunk(2)
        if self.bilinear is None:
            return self._nt_xent(F.normalize(a, dim=-1), F.normalize(b, dim=-1), present)
        query, key = self.bilinear(a, b)
        return self._info_nce(query, key, present)

    def _nt_xent(self, a: Tensor, b: Tensor, present: Present) -> LossOutput:
        all_a, all_b, offset = present.gather(a), present.gather(b), present.offset(a)
        loss = present.share(a) * nt_xent(a, b, self.temperature, all_a=all_a, all_b=all_b, offset=offset)
        seen = [x.detach() for x in (a, b, all_a, all_b)]

        def measure() -> dict[str, Tensor]:
            accuracy = nt_xent_accuracy(*seen[:2], all_a=seen[2], all_b=seen[3], offset=offset)
            return _measures(accuracy, 2 * len(seen[2]) - 1)

        return LossOutput({"nt_xent": loss}, measure)

    def _info_nce(self, query: Tensor, key: Tensor, present: Present) -> LossOutput:
        keys, offset = present.gather(key), present.offset(key)
        loss = one_way_info_nce(query, keys, self.temperature, offset)
        queries, others = query.detach(), keys.detach()
        return LossOutput({"info_nce": loss}, lambda: _measures(one_way_accuracy(queries, others, offset), len(others)))

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one view."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})


def _measures(accuracy: Tensor, candidates: int) -> dict[str, Tensor]:
    """In-batch accuracy, and the loss of guessing among all candidates."""
    return {"accuracy": accuracy, "chance_loss": torch.full_like(accuracy, math.log(max(candidates, 1)))}
