"""CPC, contrastive predictive coding: parts of a sound, clip, series or text are encoded alone, and predicted from earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.losses.cpc import cpc
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of


class CpcConfig(ObjectiveConfig):
    """Settings of contrastive predictive coding for one modality with a time axis; see `CpcObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view that is cut into parts.
        axis: axis of time of a view, without that of samples: 0 for clips [T, 3, H, W] and parts of texts [T, L], 1 for sounds and
            series [C, samples].
        parts: T, number of parts of equal length, each encoded alone.
        single: each part is one entry of the axis, which it lacks: frames of a clip for encoders of pictures, and texts of a view
            of kind `parts` for encoders of texts. The axis then has T entries.
        steps: K, how many parts ahead are predicted, each by a linear layer of its own. CPC: 12 for sounds.
        context: size of the recurrent network (GRU) that sums up the parts so far. CPC: 256.
        embedding: size of the features that are predicted. CPC: 512.
    """

    kind: Literal["cpc"] = "cpc"
    modality: Name
    view: str
    axis: int = Field(ge=0)
    parts: int = Field(ge=2)
    single: bool = False
    steps: int = Field(ge=1)
    context: int = Field(default=256, gt=0)
    embedding: int = Field(default=512, gt=0)

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.steps >= self.parts:
            raise ValueError(f"steps: got {self.steps}, wanted at most {self.parts - 1}: less than parts")
        return self

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> CpcObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder.
        """
        width = encoder_of(encoders, self.modality).width
        return CpcObjective(self, width)


class CpcObjective(Objective):
    """CPC: cross entropy of finding the next parts of a sample among all parts of all samples.

    van den Oord et al. 2018 (arXiv:1807.03748). Each part goes through the encoder alone, so that no feature knows other parts; a
    GRU sums up those so far. As candidates are all parts of the global batch, nothing is drawn. The last K parts are predicted
    and predict nothing.

    Args:
        config: settings.
        width: D of the encoder.
    """

    reduction = Reduction.GATHER
    least_samples = 2
    accepts_absent = True

    def __init__(self, config: CpcConfig, width: int) -> None:
        super().__init__()
        self.modality, self.view, self.axis = config.modality, config.view, config.axis
        self.parts, self.single, self.steps = config.parts, config.single, config.steps
        context, embedding = config.context, config.embedding
        self.project = nn.Linear(width, embedding)
        self.context = nn.GRU(embedding, context, batch_first=True)
        self.predict = nn.ModuleList([nn.Linear(context, embedding, bias=False) for _ in range(config.steps)])

    def needs(self) -> Needs:
        """One view."""
        return {self.modality: {self.view: 1}}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that the view can be cut, and that the encoder takes its parts."""
        self.encode(batch, ctx)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Features of the parts "features" [B, T, E], and predictions "predicted" [B, T - K, K, E].

        Raises:
            ValueError: the view cannot be cut into the parts.
        """
        x = batch.view(self.modality, f"{self.view}0")
        length = x.shape[self.axis + 1] if x.ndim > self.axis + 1 else 0
        if length < self.parts or length % self.parts or (self.single and length > self.parts):
            times = (
                f"{self.parts} times, one for each of the parts"
                if self.single
                else f"a multiple of {self.parts} (parts) times"
            )
            raise ValueError(f"cpc: got views {list(x.shape)} with time on axis {self.axis}, wanted {times}")
        cuts = x.unbind(self.axis + 1) if self.single else x.chunk(self.parts, self.axis + 1)
        parts = {str(i): part.contiguous() for i, part in enumerate(cuts)}
        cut = replace(batch, views={**batch.views, self.modality: parts})
        found = ctx.features(cut, self.modality, [*parts], pooled_only=True)
        z = self.project(torch.stack([features.pooled for features in found], 1))
        so_far, _ = self.context(z)
        known = so_far[:, : self.parts - self.steps]
        predicted = torch.stack([predict(known) for predict in self.predict], 2)
        return {
            "features": at_least_float32(z),
            "predicted": at_least_float32(predicted),
            **ctx.presence(batch, self.modality),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: accuracy of the next part, and the chance loss, ln of the number of parts of all samples."""
        present = Present(latents, self.least_samples)
        z = present.rows(latents["features"])
        everyone = present.gather(z)
        predictions = present.rows(latents["predicted"]).permute(2, 0, 1, 3)
        loss, hits = cpc(predictions, everyone, present.offset(z))
        candidates = max(len(everyone), 1) * self.parts

        def measure() -> dict[str, Tensor]:
            right, rows = distributed.sum_and_count(hits)
            return {"accuracy": right / rows.clamp(min=1), "chance_loss": torch.full_like(right, math.log(candidates))}

        return LossOutput({"cpc": loss}, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy of the next part."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
