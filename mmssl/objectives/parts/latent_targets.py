"""What JEPA predicts of a teacher, and how predictions are compared with it: the base of its kinds of targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.teacher import Momentum


@dataclass(frozen=True)
class Predicted:
    """What the student predicts with one kind of mask, of which R are drawn for each sample.

    Attributes:
        tokens: predictions at hidden tokens [R, B, n, D].
        targets: what they should be, [R, B, n, D].
        pooled: the student's pooled features [R, B, D].
    """

    tokens: Tensor
    targets: Tensor
    pooled: Tensor


class LatentTargets(nn.Module, ABC):
    """Targets that a teacher gives, and the comparison of predictions with them.

    Attributes:
        hidden: number of the teacher's last layers that are read.
        mlps: whether these are outputs of mlps.
        couples_samples: whether the loss of a sample depends on other samples of the batch.
    """

    hidden: int = 0
    mlps: bool = False
    couples_samples: bool = False

    @abstractmethod
    def of(self, features: Features) -> Tensor:
        """Targets of all tokens [B, T, D] of the teacher's features; float32 or float64."""

    @abstractmethod
    def encode(self, predicted: Sequence[Predicted], whole: Tensor | None) -> Latents:
        """Latents of the predictions with each kind of mask; `whole`: targets of all tokens [B, T, D], None: not known."""

    @abstractmethod
    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """The loss, from latents of all samples of this process."""

    @abstractmethod
    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """The figures to watch."""

    def update(self, latents: Latents) -> None:
        """Take note of what `criterion` kept; called after each step."""


class LatentTargetsBase(Config, ABC):
    """Base of the settings of targets.

    Attributes:
        takes_beta: whether the error may turn from squared to absolute.
        takes_block: whether the teacher may see hidden tokens alone.
    """

    takes_beta: ClassVar[bool] = True
    takes_block: ClassVar[bool] = True

    @abstractmethod
    def build(
        self, encoder: Encoder, modality: str, beta: float | None, momentum: Momentum, plan: Plan
    ) -> LatentTargets:
        """Build them.

        Args:
            encoder: of the student.
            modality: its modality.
            beta: of `JepaConfig`.
            momentum: of teachers.
            plan: of the run, below the key of the targets.

        Raises:
            ValueError: they do not fit the encoder.
        """
