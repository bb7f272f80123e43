"""Pretext tasks: each changes a view by a number, which is to be told from the changed view."""

from __future__ import annotations

import itertools
from abc import ABC
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from mmssl.objectives.parts.noises import uniform_noise
from mmssl.objectives.parts.pretext_task import PretextTask, picked
from mmssl.objectives.parts.tile_tasks import ContextConfig, JigsawConfig


class RotationConfig(PretextTask):
    """Rotation by 0, 90, 180 or 270 degrees, counter-clockwise (Gidaris et al. 2018, arXiv:1803.07728), of pictures or clips.

    Exact, of square views. There each batch has all four rotations of a picture, here one, which is drawn.
    """

    kind: Literal["rotation"] = "rotation"

    @property
    def classes(self) -> int:
        """Four."""
        return 4

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        if x.ndim < 4 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"rotation: got views {list(x.shape)}, wanted [B, ..., H, H]: square pictures or frames")
        which = label.view(-1, *[1] * (x.ndim - 1))
        turned = x
        for quarter in (1, 2, 3):
            turned = torch.where(which == quarter, x.rot90(quarter, (-2, -1)), turned)
        return [turned]


class TimeTask(PretextTask, ABC):
    """Base of tasks on the time of videos, sounds and series.

    Attributes:
        axis: axis of time of a view, without that of samples: 0 for clips [T, 3, H, W], 1 for sounds and series [C, samples].
    """

    axis: int = Field(ge=0)

    def at(self, x: Tensor, times: Tensor) -> Tensor:
        """The times [B, n] int64 of each view [B, ...]."""
        return picked(x.movedim(self.axis + 1, 1), times).movedim(1, self.axis + 1)

    def length(self, x: Tensor, divisor: int) -> int:
        """Number of times of a view, which must be a multiple of `divisor`."""
        length = x.shape[self.axis + 1] if x.ndim > self.axis + 1 else 0
        if length < divisor or length % divisor:
            raise ValueError(
                f"{self.kind}: got views {list(x.shape)} with time on axis {self.axis}, wanted a multiple of {divisor} times there"  # type: ignore[attr-defined]
            )
        return length


class OrderConfig(TimeTask):
    """Temporal order: in which order parts of a clip, sound or series stand; each part is encoded alone.

    Lee et al. 2017 (arXiv:1708.01246), who sort four frames; Xu et al. 2019, who sort clips.

    Attributes:
        pieces: number of parts, of equal length.
        reversible: an order and its reverse are one, as where motion does not tell the arrow of time.
        channels: "all"; or of each part of a clip "one", which is drawn, in place of all three, so that colours do not tell the
            order. Lee et al.: one.
    """

    kind: Literal["order"] = "order"
    pieces: int = Field(default=4, ge=2, le=5)
    reversible: bool = True
    channels: Literal["all", "one"] = "all"

    @model_validator(mode="after")
    def _there_are_two_orders(self) -> Self:
        if self.classes < 2:
            raise ValueError("got 2 pieces and reversible: true, wanted two orders or more; set reversible: false")
        return self

    @property
    def orders(self) -> list[tuple[int, ...]]:
        """The orders, by label."""
        every = itertools.permutations(range(self.pieces))
        return [order for order in every if not self.reversible or order < order[::-1]]

    @property
    def classes(self) -> int:
        """Orders."""
        return len(self.orders)

    @property
    def parts(self) -> int:
        """Pieces."""
        return self.pieces

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        size = self.length(x, self.pieces) // self.pieces
        starts = torch.tensor(self.orders, device=label.device)[label] * size  # [B, pieces]
        inside = torch.arange(size, device=label.device)
        parts = [self.at(x, start[:, None] + inside) for start in starts.unbind(1)]
        if self.channels == "all":
            return parts
        if x.ndim != 5 or self.axis != 0:
            raise ValueError(
                f"order: got views {list(x.shape)} for channels: one, wanted clips [B, T, C, H, W] with axis: 0"
            )
        drawn = (uniform_noise(index, seed, self.pieces) * x.shape[2]).long()  # [B, pieces]
        chosen = [picked(part.transpose(1, 2), which[:, None]) for part, which in zip(parts, drawn.T, strict=True)]
        return [one.transpose(1, 2).expand(-1, -1, x.shape[2], -1, -1) for one in chosen]


class ArrowConfig(TimeTask):
    """Arrow of time: forwards or backwards (Wei et al. 2018, "Learning and Using the Arrow of Time")."""

    kind: Literal["arrow"] = "arrow"

    @property
    def classes(self) -> int:
        """Two."""
        return 2

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        forwards = torch.arange(self.length(x, 1), device=label.device)
        return [self.at(x, torch.where(label[:, None] == 0, forwards, forwards.flip(0)))]


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(values) < 2 or min(values) < 1 or sorted(set(values)) != list(values):
        raise ValueError(f"got {list(values)}, wanted two or more different whole numbers, ascending")
    return values


class SpeedConfig(TimeTask):
    """Playback speed: every first, second, ... time of a view (Benaim et al. 2020, "SpeedNet"), of clips and series.

    Attributes:
        speeds: steps of time, by label. The made view has as many times as the fastest leaves.
    """

    kind: Literal["speed"] = "speed"
    speeds: Annotated[tuple[int, ...], AfterValidator(_rising)] = (1, 2)

    @property
    def classes(self) -> int:
        """Speeds."""
        return len(self.speeds)

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        times = torch.arange(self.length(x, self.speeds[-1]) // self.speeds[-1], device=label.device)
        return [self.at(x, times * torch.tensor(self.speeds, device=label.device)[label][:, None])]


TaskConfig = Annotated[
    RotationConfig | JigsawConfig | ContextConfig | OrderConfig | ArrowConfig | SpeedConfig,
    Field(discriminator="kind"),
]
