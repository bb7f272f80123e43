"""SimCSE: two passes of a sample through an encoder with dropout are positives, all other samples are negatives."""

from __future__ import annotations

import copy
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
from mmssl.losses.one_way_info_nce import one_way_accuracy, one_way_info_nce
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of


class SimCseConfig(ObjectiveConfig):
    """Settings of unsupervised SimCSE for one modality; see `SimCseObjective`.

    Attributes:
        modality: modality of the encoder to train, which must have dropout or drop path.
        view: kind of the view that is encoded twice.
        temperature: divisor of the cosines. SimCSE: 0.05.
    """

    kind: Literal["simcse"] = "simcse"
    modality: Name
    view: str
    temperature: float = Field(gt=0)

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> SimCseObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the encoder is frozen, so that its passes are equal.
        """
        encoder = encoder_of(encoders, self.modality)
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ValueError(
                f"simcse: encoders.{self.modality} is frozen, so it has no dropout, and two passes are equal: set frozen: false"
            )
        return SimCseObjective(self.modality, self.view, encoder.width, self.temperature)


class SimCseObjective(Objective):
    """Unsupervised SimCSE: cross entropy of finding the second pass of a sample among those of all samples from its first pass.

    Gao et al. 2021 (arXiv:2104.08821). Both passes see one view; dropout, drop path and the like make them differ. As there, the
    head is a linear layer with tanh, of the encoder's width, and not used after training.

    Args:
        modality: modality of the encoder to train.
        view: kind of the view.
        width: D of the encoder.
        temperature: divisor of the cosines.
    """

    reduction = Reduction.GATHER
    least_samples = 2
    accepts_absent = True

    def __init__(self, modality: str, view: str, width: int, temperature: float) -> None:
        super().__init__()
        self.modality, self.view, self.temperature = modality, view, temperature
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def needs(self) -> Needs:
        """One view."""
        return {self.modality: {self.view: 1}}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that the encoder draws random numbers in training."""
        probe = copy.deepcopy(ctx.encoders[self.modality]).cpu().train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            probe(batch.view(self.modality, f"{self.view}0"), pooled_only=True)
            if torch.equal(before, torch.get_rng_state()):
                raise ValueError(
                    f"simcse: encoders.{self.modality} has no dropout, so two passes are equal: set dropout (SimCSE: 0.1) or "
                    "drop_path"
                )

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Pooled features [B, D] of the two passes, "0" and "1"."""
        both = ctx.features(batch, self.modality, [f"{self.view}0"] * 2, pooled_only=True)
        return {"0": both[0].pooled, "1": both[1].pooled, **ctx.presence(batch, self.modality)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: in-batch accuracy and the chance loss, ln G."""
        present = Present(latents, self.least_samples)
        a, b = (F.normalize(self.head(present.rows(latents[number])), dim=-1) for number in ("0", "1"))
        everyone, offset = present.gather(b), present.offset(b)
        loss = one_way_info_nce(a, everyone, self.temperature, offset)
        rows, keys = a.detach(), everyone.detach()

        def measure() -> dict[str, Tensor]:
            accuracy = one_way_accuracy(rows, keys, offset)
            return {"accuracy": accuracy, "chance_loss": torch.full_like(accuracy, math.log(max(len(keys), 1)))}

        return LossOutput({"simcse": loss}, measure)

    def monitored(self) -> Mapping[str, str]:
        """The encoder's features of one pass."""
        return {self.modality: "0"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
