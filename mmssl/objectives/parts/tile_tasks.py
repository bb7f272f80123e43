"""Pretext tasks on tiles of a picture: jigsaw puzzles, and on which side of a tile another one lies."""

from __future__ import annotations

import itertools
from abc import ABC
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from mmssl.objectives.parts.noises import normal_noise, uniform_noise
from mmssl.objectives.parts.pretext_task import PretextTask, as_floats, picked

NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)
"""Cells of a 3 x 3 grid around the middle one, by label (Doersch et al. 2015); 7 minus a label is that of the opposite side."""
_KNOWN: dict[tuple[int, int], Tensor] = {}


class TileTask(PretextTask, ABC):
    """Base of tasks on square tiles of a picture, one in each cell of a grid, at a place that is drawn for each picture and step.

    Attributes:
        tile: side of a tile in pixels; smaller than a cell, so that edges do not continue from one to the next.
        standardise: each channel of a tile gets the mean and standard deviation that it has in the whole picture, so that these
            do not tell which tiles are neighbours. Both papers: true.
    """

    tile: int = Field(ge=1)
    standardise: bool = False

    def tiles(self, x: Tensor, side: int, index: Tensor, seed: int) -> Tensor:
        """Tiles [B, side * side, C, tile, tile] of pictures [B, C, H, W], cells in reading order; floats where standardised."""
        cells = [size // side for size in x.shape[-2:]]
        if x.ndim != 4 or min(cells) < self.tile:
            raise ValueError(
                f"{self.kind}: got views {list(x.shape)} for tiles of {self.tile} pixels on a grid of {side} x {side}, wanted "  # type: ignore[attr-defined]
                f"[B, C, H, W] with sides of {side * self.tile} or more"
            )
        drawn = uniform_noise(index, seed, 2 * side**2).view(-1, side, side, 2)
        corners = []
        for axis, cell in enumerate(cells):
            first = torch.arange(side, device=x.device).view(-1, *[1] * (1 - axis)) * cell
            corners.append(first + (drawn[..., axis] * (cell - self.tile + 1)).long())  # [B, side, side]
        inside = torch.arange(self.tile, device=x.device)
        rows, columns = (corner.flatten(1)[..., None] + inside for corner in corners)  # [B, side * side, tile]
        samples, channels = (torch.arange(size, device=x.device) for size in x.shape[:2])
        found = x[
            samples[:, None, None, None, None],
            channels[:, None, None],
            rows[:, :, None, :, None],
            columns[:, :, None, None],
        ]
        return _alike(found, x) if self.standardise else found


class JigsawConfig(TileTask):
    """Jigsaw puzzle: which of some permutations the tiles of a picture are in (Noroozi and Favaro 2016, arXiv:1603.09246).

    Permutations differ from each other in as many places as possible. Colours tell neighbours: make views grey for some of the
    samples.

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

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        orders = distant_permutations(self.parts, self.permutations).to(label.device)
        return list(picked(self.tiles(x, self.side, index, seed), orders[label]).unbind(1))


class ContextConfig(TileTask):
    """Relative place: on which of eight sides of a tile another one lies (Doersch et al. 2015, arXiv:1505.05192).

    The head reads both tiles in both orders: seen from the other one, the first lies on the opposite side.

    Attributes:
        channels: "all"; or of each tile "one", which is drawn, and normal noise of a hundredth of its deviation in place of the
            others: aberration of lenses shifts colours towards the middle of a picture, and tells places. The paper: one.
    """

    kind: Literal["context"] = "context"
    channels: Literal["all", "one"] = "all"

    @property
    def classes(self) -> int:
        """Eight."""
        return len(NEIGHBOURS)

    @property
    def parts(self) -> int:
        """The tile in the middle and its neighbour."""
        return 2

    def readings(self, label: Tensor) -> list[tuple[Sequence[int], Tensor]]:
        """Both orders of the two tiles."""
        return [((0, 1), label), ((1, 0), len(NEIGHBOURS) - 1 - label)]

    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """See the base."""
        tiles = self.tiles(x, 3, index, seed)
        places = torch.tensor(NEIGHBOURS, device=label.device)[label]
        both = picked(tiles, torch.stack([torch.full_like(places, 4), places], 1))
        return list((both if self.channels == "all" else _one_channel(both, x, index, seed + 1)).unbind(1))


def _alike(tiles: Tensor, x: Tensor) -> Tensor:
    """Tiles [B, n, C, t, t] with the mean and standard deviation of each channel in their picture [B, C, H, W]."""
    floats, whole = as_floats(tiles), as_floats(x)[:, None]
    mean, deviation = (f(floats) for f in (_mean, _deviation))
    return (floats - mean) / deviation * _deviation(whole) + _mean(whole)


def _one_channel(tiles: Tensor, x: Tensor, index: Tensor, seed: int) -> Tensor:
    """One channel of each tile [B, n, C, t, t], and noise about the picture's mean in place of the others."""
    floats, whole = as_floats(tiles), as_floats(x)[:, None]
    count, channels = floats.shape[1:3]
    kept = (uniform_noise(index, seed, count) * channels).long()  # [B, n]
    stays = F.one_hot(kept, channels).bool()[..., None, None]
    deviation = (_deviation(floats) * stays).sum(2, keepdim=True)  # that of the channel that stays
    noise = normal_noise(index, seed + 1, floats.shape[1:]).to(floats)
    return torch.where(stays, floats, _mean(whole) + 0.01 * deviation * noise)


def _mean(x: Tensor) -> Tensor:
    return x.mean((-2, -1), keepdim=True)


def _deviation(x: Tensor) -> Tensor:
    return x.std((-2, -1), keepdim=True, correction=0).clamp(min=1e-6)


def distant_permutations(n: int, count: int) -> Tensor:
    """Permutations [count, n] of n things, each as far as possible from those before it (Noroozi and Favaro 2016, algorithm 1).

    Greedy: the largest of the smallest Hamming distances; the first one in lexicographic order of several. Starts with the
    identity.
    """
    if (n, count) not in _KNOWN:
        every = np.array(
            list(itertools.permutations(range(n))), dtype=np.int8
        ).T.copy()  # [n, n!]: fast along the second axis
        chosen, distance = [0], np.full(every.shape[1], n, dtype=np.int8)
        while len(chosen) < count:
            differ = np.zeros_like(distance)
            for things in every:
                differ += things != things[chosen[-1]]
            np.minimum(distance, differ, out=distance)
            chosen.append(int(distance.argmax()))
        _KNOWN[n, count] = torch.from_numpy(every[:, chosen].T.astype(np.int64))
    return _KNOWN[n, count]
