"""Base of the laws of masks, and the view that draws masks by a law: exact counts, so that rows of a batch are alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

GridShape = tuple[int, int]
"""Rows and columns of a grid of tokens; a sequence of tokens has one row."""
MaskRatio = Annotated[float, Field(gt=0, lt=1)]


class TokenLaw(Config, ABC):
    """Base of the configs that describe views of token places; a grid is added by another base."""

    @abstractmethod
    def view(self, shape: GridShape, times: int = 1) -> View:
        """Build the view.

        Args:
            shape: rows and columns of the grid.
            times: number of grids in reading order, such as the times of a clip. T = rows x columns x times.

        Raises:
            ValueError: the law does not fit the grid.
        """


class MaskLaw(TokenLaw, ABC):
    """Base of the laws that mask tokens."""

    @abstractmethod
    def choose(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        """Draw a mask, bool [rows, columns], True = masked."""

    @abstractmethod
    def check(self, shape: GridShape) -> None:
        """Raise a ValueError if the law does not fit the grid."""

    def view(self, shape: GridShape, times: int = 1) -> Mask:
        """Build the view; a place is masked at all times or at none."""
        self.check(shape)
        return Mask(self, shape, times)


class Mask(View):
    """Random mask of the T tokens of a view, bool [T], True = masked. Parameters: the masked places.

    `mask.nonzero()[:, 1].view(len(mask), -1)` of a batch [B, T] are the places [B, n], ascending, where counts are equal.

    Args:
        law: draws the mask of a grid.
        shape: rows and columns of the grid.
        times: number of grids that are masked alike.
    """

    def __init__(self, law: MaskLaw, shape: GridShape, times: int = 1) -> None:
        self.law = law
        self.shape = shape
        self.times = times
        self.grid = grid_of(shape, times)

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the places."""
        return {"masked": np.flatnonzero(self.law.choose(self.shape, rng)).tolist()}

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The mask as a tensor."""
        return to_tensor(np.tile(to_mask(parameters["masked"], self.shape), self.times))

    def blank(self) -> Tensor:
        """A mask like any other, always the same."""
        return self(None, self.draw(None, np.random.default_rng(0)))


def grid_of(shape: GridShape, times: int) -> tuple[int, ...] | None:
    """Times, rows and columns, without sides of one token; None of a sequence."""
    sides = tuple(side for side in (times, *shape) if side > 1)
    return sides if len(sides) > 1 else None


def to_mask(places: list[int], shape: GridShape) -> np.ndarray:
    """Mask of a grid, bool [rows x columns], True at these places."""
    mask = np.zeros(shape[0] * shape[1], dtype=bool)
    mask[places] = True
    return mask


def set_count(mask: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Add or remove random cells of a bool array, in place, so that exactly `count` are True."""
    flat = mask.reshape(-1)
    missing = count - int(flat.sum())
    pool = np.flatnonzero(flat == (missing < 0))
    flat[rng.choice(pool, abs(missing), replace=False)] = missing > 0


def check_masked_count(count: int, cells: int, what: str) -> None:
    """Raise a ValueError unless a mask has at least one cell, and leaves one."""
    if not 0 < count < cells:
        raise ValueError(
            f"got {what}, which masks {count} of {cells} tokens, wanted at least one masked and one visible"
        )
