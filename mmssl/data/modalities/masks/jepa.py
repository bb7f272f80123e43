"""Masks of joint-embedding prediction (I-JEPA): blocks to predict, and a context without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Range, Share
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.masks.law import GridShape, MaskRatio, TokenLaw, grid_of, set_count, to_mask
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 20
"""Draws until a context is large enough; then the targets are drawn at one place."""


class JepaLaw(TokenLaw):
    """Blocks to predict and a context without them: I-JEPA (arXiv:2301.08243, section 3), V-JEPA.

    Every target has the same number of tokens, the mean of `scale`: random cells at the border of a block are added or removed.
    The context is a large block without the targets, of which random tokens stay. Other than in the authors' code, blocks reach
    the last row and column, and no batch cuts off the tokens of the bottom right.

    Attributes:
        targets: number of blocks to predict. They may overlap.
        scale: range of a target's share of the tokens.
        aspect: range of a target's height / width.
        context: share of the tokens in the context, rounded down; draws that leave fewer are repeated.
        context_scale: range of the share of the tokens in the block of the context before targets are taken out of it.
    """

    kind: Literal["jepa"] = "jepa"
    targets: int = Field(default=4, ge=1)
    scale: Share = (0.15, 0.2)
    aspect: Range = (0.75, 1.5)
    context: MaskRatio = 0.3
    context_scale: Share = (0.85, 1.0)

    def view(self, shape: GridShape, times: int = 1) -> JepaMask:
        """Build the view."""
        cells = shape[0] * shape[1]
        visible, hidden = self.counts(cells)
        if not 0 < visible <= cells - hidden:
            raise ValueError(
                f"got a context of {visible} and targets of {hidden} tokens on a grid of {shape[0]} x {shape[1]}, wanted both to "
                "fit, and at least one token of context: change context or scale"
            )
        rng = np.random.default_rng(0)
        large = sum(int(self._draw(shape, rng)[0].sum()) >= visible for _ in range(TRIES))
        if large < TRIES // 4:
            raise ValueError(
                f"got a context of {visible} of {cells} tokens, which {large} of {TRIES} draws of {self.targets} targets leave: "
                "lower context"
            )
        return JepaMask(self, shape, times)

    def counts(self, cells: int) -> tuple[int, int]:
        """Number of tokens of the context, and of each target."""
        return int(round(self.context * cells, 6)), max(1, round(sum(self.scale) / 2 * cells))

    def choose(self, shape: GridShape, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        """Draw the context and the targets, bool [rows, columns] each."""
        visible, _ = self.counts(shape[0] * shape[1])
        for _ in range(TRIES):
            context, targets = self._draw(shape, rng)
            if context.sum() >= visible:
                break
        else:
            targets = [targets[0]] * self.targets
            context = ~targets[0]
        set_count(context, visible, rng)
        return context, targets

    def _draw(self, shape: GridShape, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        targets = [self._target(shape, rng) for _ in range(self.targets)]
        side = math.sqrt(rng.uniform(*self.context_scale))
        return _block(shape, shape[0] * side, shape[1] * side, rng) & ~np.any(targets, axis=0), targets

    def _target(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        _, cells = self.counts(shape[0] * shape[1])
        area, aspect = rng.uniform(*self.scale) * shape[0] * shape[1], rng.uniform(*self.aspect)
        block = _block(shape, math.sqrt(area * aspect), math.sqrt(area / aspect), rng)
        while missing := cells - int(block.sum()):
            pool = np.flatnonzero(_next_to(block) & ~block if missing > 0 else _next_to(~block, True) & block)
            block.reshape(-1)[rng.choice(pool, min(abs(missing), len(pool)), replace=False)] = missing > 0
        return block


class JepaMask(View):
    """Context and targets of a view of T tokens, bool [1 + targets, T]: row 0 is the context, every other row a target.

    All rows of a batch [B, 1 + M, T] have equal counts: `masks[:, 0].nonzero()[:, 1].view(B, -1)` are the places [B, n] of the
    contexts, and `masks[:, 1:].nonzero()[:, 2].view(B, M, -1)` those of the targets [B, M, n]. Parameters: the places.

    Args:
        law: draws context and targets of a grid.
        shape: rows and columns of the grid.
        times: number of grids that are masked alike.
    """

    def __init__(self, law: JepaLaw, shape: GridShape, times: int = 1) -> None:
        self.law = law
        self.shape = shape
        self.times = times
        self.grid = grid_of(shape, times)

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the places."""
        context, targets = self.law.choose(self.shape, rng)
        return {
            "context": np.flatnonzero(context).tolist(),
            "targets": [np.flatnonzero(one).tolist() for one in targets],
        }

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The masks as a tensor."""
        rows = [to_mask(places, self.shape) for places in (parameters["context"], *parameters["targets"])]
        return to_tensor(np.tile(np.stack(rows), (1, self.times)))

    def blank(self) -> Tensor:
        """Context and targets like any other, always the same."""
        return self(None, self.draw(None, np.random.default_rng(0)))


def _block(shape: GridShape, height: float, width: float, rng: np.random.Generator) -> np.ndarray:
    """A block of about this size at a random place, every one equally likely, bool [rows, columns]."""
    h, w = (min(max(1, round(side)), limit) for side, limit in zip((height, width), shape, strict=True))
    top, left = int(rng.integers(shape[0] - h + 1)), int(rng.integers(shape[1] - w + 1))
    block = np.zeros(shape, dtype=bool)
    block[top : top + h, left : left + w] = True
    return block


def _next_to(mask: np.ndarray, beyond: bool = False) -> np.ndarray:
    """Cells with a neighbour in the mask, above, below, left or right; `beyond` the border everything, or nothing, is in it."""
    m = np.pad(mask, 1, constant_values=beyond)
    near: np.ndarray = m[:-2, 1:-1] | m[2:, 1:-1] | m[1:-1, :-2] | m[1:-1, 2:]
    return near
