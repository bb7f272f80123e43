"""Targets of self-distillation: a teacher's scores of prototypes, centred and sharpened or balanced, as probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.config import Config
from mmssl.losses.sinkhorn import sinkhorn


class TeacherTargets(nn.Module, ABC):
    """Makes soft assignments, the targets of a student, from a teacher's scores, such that they do not collapse.

    Attributes:
        couples_samples: whether the target of a sample depends on other samples of the batch.
    """

    couples_samples: ClassVar[bool]

    @abstractmethod
    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """Scores [n, K] of this process, divided by the temperature -> probabilities [n, K]; no gradient."""

    def update(self, embeddings: Tensor, prototypes: nn.Module) -> None:
        """Take note of the embeddings [n, E] of this process whose scores were used; called after each step."""


class Centring(TeacherTargets):
    """Centring and sharpening (DINO): softmax of the teacher's scores minus their running mean, over a low temperature.

    Caron et al. 2021 (arXiv:2104.14294, equation 4). The centre is the exponential moving average of the mean scores of all views,
    samples and processes; that of a batch is used from the next one on. Without any sample it stays.

    Args:
        count: K.
        momentum: share of the centre that stays.

    Attributes:
        centre: [K].
    """

    couples_samples = False
    centre: Tensor

    def __init__(self, count: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(count))

    @torch.no_grad()
    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """See the base."""
        return ((scores - self.centre) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, embeddings: Tensor, prototypes: nn.Module) -> None:
        """Move the centre. Scores are linear in embeddings, so the mean score is that of the mean embedding: E numbers are sent."""
        total, rows = distributed.sum_and_count(embeddings)
        mean = prototypes(total / rows.clamp(min=1))
        self.centre.lerp_(mean, (1 - self.momentum) * rows.clamp(max=1))


class CentringConfig(Config):
    """Centring of a teacher's scores by their running mean; see `Centring`.

    Attributes:
        momentum: share of the centre that stays at each step. DINO: 0.9.
    """

    kind: Literal["centring"] = "centring"
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def build(self, count: int) -> Centring:
        """Build it for this number of prototypes."""
        return Centring(count, self.momentum)


class SinkhornTargets(TeacherTargets):
    """Sinkhorn-Knopp over the teacher's scores of all views, samples and processes together (DINOv2, arXiv:2304.07193).

    Args:
        iterations: of Sinkhorn-Knopp.
    """

    couples_samples = True

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """See the base."""
        return sinkhorn(scores, temperature, self.iterations)


class SinkhornTargetsConfig(Config):
    """Sinkhorn-Knopp in place of centring; see `SinkhornTargets`.

    Attributes:
        iterations: how often columns and rows are normalised. DINOv2: 3.
    """

    kind: Literal["sinkhorn"] = "sinkhorn"
    iterations: int = Field(default=3, ge=1)

    def build(self, count: int) -> SinkhornTargets:
        """Build it."""
        return SinkhornTargets(self.iterations)


TeacherTargetsConfig = Annotated[CentringConfig | SinkhornTargetsConfig, Field(discriminator="kind")]
