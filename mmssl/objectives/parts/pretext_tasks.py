"""Pretext tasks: each changes a view by a number, which is to be told from what is left of it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from mmssl.core.config import Config

NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)
"""Cells of a 3 x 3 grid around the middle one, by label (Doersch et al. 2015)."""
Uniform = Callable[[int], Tensor]
"""How many -> as many uniform numbers between 0 and 1 for each sample, [B, values] float32."""


class PretextTask(Config, ABC):
    """Base of pretext tasks. They work on the device, on raw views."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """K, number of labels."""

    @property
    def parts(self) -> int:
        """Number of views that are made of one, and encoded each alone."""
        return 1

    @abstractmethod
    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """The views of raw views [B, ...], each [B, ...], for labels [B] int64.

        Args:
            x: raw views.
            label: below K.
            uniform: draws what is random about the views, for each sample.

        Raises:
            ValueError: the view has another shape than the task needs.
        """


class RotationConfig(PretextTask):
    """Rotation by 0, 90, 180 or 270 degrees, counter-clockwise (Gidaris et al. 2018, arXiv:1803.07728), of pictures or clips.

    Exact, of square views. There each batch has all four rotations of a picture, here one, which is drawn.
    """

    kind: Literal["rotation"] = "rotation"

    @property
    def classes(self) -> int:
        """Four."""
        return 4

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """See the base."""
        if x.ndim < 4 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"rotation: got views {list(x.shape)}, wanted [B, ..., H, H]: square pictures or frames")
        which = label.view(-1, *[1] * (x.ndim - 1))
        turned = x
        for quarter in (1, 2, 3):
            turned = torch.where(which == quarter, x.rot90(quarter, (-2, -1)), turned)
        return [turned]


class TileTask(PretextTask, ABC):
    """Base of tasks on square tiles of a picture, one in each cell of a grid, at a place that is drawn for each sample.

    Attributes:
        tile: side of a tile in pixels; smaller than a cell, so that edges do not continue from one to the next.
    """

    tile: int = Field(ge=1)

    def tiles(self, x: Tensor, side: int, uniform: Uniform) -> Tensor:
        """Tiles [B, side * side, C, tile, tile] of pictures [B, C, H, W], cells in reading order."""
        cells = [size // side for size in x.shape[-2:]]
        if x.ndim != 4 or min(cells) < self.tile:
            raise ValueError(
                f"{self.kind}: got views {list(x.shape)} for tiles of {self.tile} pixels on a grid of {side} x {side}, wanted "  # type: ignore[attr-defined]
                f"[B, C, H, W] with sides of {side * self.tile} or more"
            )
        first = torch.cartesian_prod(*[torch.arange(side) * size for size in cells]).to(x.device)  # [side * side, 2]
        free = torch.tensor([size - self.tile for size in cells], device=x.device)
        drawn = uniform(2 * len(first)).view(len(x), -1, 2)
        corner = first + (drawn * (free + 1)).long().minimum(free)  # [B, side * side, 2]
        y, z = (corner[..., axis, None] + torch.arange(self.tile, device=x.device) for axis in (0, 1))
        sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        return x.movedim(1, -1)[sample, y[..., None], z[..., None, :]].movedim(-1, 2)


class JigsawConfig(TileTask):
    """Jigsaw puzzle: which of some permutations the tiles of a picture are in (Noroozi and Favaro 2016, arXiv:1603.09246).

    Permutations differ from each other in as many places as possible. Colours and means of tiles tell neighbours: make views grey
    for some of the samples.

    Attributes:
        permutations: K, their number. The paper: 1000, of 3 x 3 tiles of 64 pixels in cells of 85.
        side: tiles of a side of the grid.
    """

    kind: Literal["jigsaw"] = "jigsaw"
    permutations: int = Field(ge=2)
    side: int = Field(default=3, ge=2, le=3)

    @model_validator(mode="after")
    def _as_many_as_there_are(self) -> Self:
        most = int(np.prod(np.arange(1, self.side**2 + 1)))
        if self.permutations > most:
            raise ValueError(f"permutations: got {self.permutations}, wanted at most {most}")
        return self

    @property
    def classes(self) -> int:
        """Permutations."""
        return self.permutations

    @property
    def parts(self) -> int:
        """Tiles."""
        return self.side**2

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """See the base."""
        orders = distant_permutations(self.parts, self.permutations).to(label.device)
        return list(_picked(self.tiles(x, self.side, uniform), orders[label]).unbind(1))


class ContextConfig(TileTask):
    """Relative place: on which of eight sides of a tile another one lies (Doersch et al. 2015, arXiv:1505.05192)."""

    kind: Literal["context"] = "context"

    @property
    def classes(self) -> int:
        """Eight."""
        return len(NEIGHBOURS)

    @property
    def parts(self) -> int:
        """The tile in the middle and its neighbour."""
        return 2

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """See the base."""
        tiles = self.tiles(x, 3, uniform)
        places = torch.tensor(NEIGHBOURS, device=label.device)[label]
        return [tiles[:, 4], _picked(tiles, places[:, None])[:, 0]]


class TimeTask(PretextTask, ABC):
    """Base of tasks on the time of videos, sounds and series.

    Attributes:
        axis: axis of time of a view, without that of samples: 0 for clips [T, 3, H, W], 1 for sounds and series [C, samples].
    """

    axis: int = Field(ge=0)

    def at(self, x: Tensor, times: Tensor) -> Tensor:
        """The times [B, n] int64 of each view [B, ...]."""
        return _picked(x.movedim(self.axis + 1, 1), times).movedim(1, self.axis + 1)

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
    """

    kind: Literal["order"] = "order"
    pieces: int = Field(default=4, ge=2, le=5)
    reversible: bool = True

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

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """See the base."""
        size = self.length(x, self.pieces) // self.pieces
        starts = torch.tensor(self.orders, device=label.device)[label] * size  # [B, pieces]
        inside = torch.arange(size, device=label.device)
        return [self.at(x, start[:, None] + inside) for start in starts.unbind(1)]


class ArrowConfig(TimeTask):
    """Arrow of time: forwards or backwards (Wei et al. 2018, "Learning and Using the Arrow of Time")."""

    kind: Literal["arrow"] = "arrow"

    @property
    def classes(self) -> int:
        """Two."""
        return 2

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
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

    def make(self, x: Tensor, label: Tensor, uniform: Uniform) -> list[Tensor]:
        """See the base."""
        times = torch.arange(self.length(x, self.speeds[-1]) // self.speeds[-1], device=label.device)
        return [self.at(x, times * torch.tensor(self.speeds, device=label.device)[label][:, None])]


TaskConfig = Annotated[
    RotationConfig | JigsawConfig | ContextConfig | OrderConfig | ArrowConfig | SpeedConfig,
    Field(discriminator="kind"),
]
_KNOWN: dict[tuple[int, int], Tensor] = {}


def distant_permutations(n: int, count: int) -> Tensor:
    """Permutations [count, n] of n things, each as far as possible from those before it (Noroozi and Favaro 2016, algorithm 1).

    Greedy: the largest of the smallest Hamming distances; the first one in lexicographic order of several. Starts with the
    identity.
    """
    if (n, count) not in _KNOWN:
        every = np.array(list(itertools.permutations(range(n))), dtype=np.int8)
        chosen, distance = [0], np.full(len(every), n)
        while len(chosen) < count:
            distance = np.minimum(distance, (every != every[chosen[-1]]).sum(1))
            chosen.append(int(distance.argmax()))
        _KNOWN[n, count] = torch.from_numpy(every[chosen].astype(np.int64))
    return _KNOWN[n, count]


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Rows `places` [B, n] of each of [B, m, ...] -> [B, n, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]
