"""Masks of rectangular blocks on a grid of tokens: of blocks (BEiT), and of all but blocks (data2vec 2.0)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Probability, Range, Share
from mmssl.data.modalities.masks.law import GridShape, MaskLaw, MaskRatio, check_masked_count, set_count

TRIES = 10
"""Attempts to place a block; if all fail, the rest of the mask is random cells."""


class BlocksLaw(MaskLaw):
    """Mask random rectangular blocks: BEiT (arXiv:2106.08254, algorithm 1), data2vec, iBOT and DINOv2.

    Blocks are drawn until the count is reached, or until none fits; then random cells are added. BEiT's code stops there, with
    fewer cells.

    Attributes:
        ratio: share of masked tokens, rounded to whole ones. BEiT: 0.4, data2vec 0.6. [low, high]: uniform for each sample, whose
            counts then differ, as in iBOT and DINOv2 with [0.1, 0.5].
        probability: probability that a sample is masked at all. iBOT and DINOv2: 0.5.
        smallest: smallest number of cells of a block. BEiT: 16, DINOv2: 4.
        aspect: range of a block's height / width (log-uniform).
    """

    kind: Literal["blocks"] = "blocks"
    ratio: MaskRatio | Share = 0.4
    probability: Probability = 1.0
    smallest: int = Field(default=16, ge=1)
    aspect: Range = (0.3, 1 / 0.3)

    def check(self, shape: GridShape) -> None:
        """Refuse a grid of one row or column, and blocks above the count."""
        cells = shape[0] * shape[1]
        highest = self.ratio if isinstance(self.ratio, float) else self.ratio[1]
        most = round(highest * cells)
        if min(shape) < 2:
            raise ValueError(
                f"got a grid of {shape[0]} x {shape[1]} tokens, wanted two rows and columns or more for blocks"
            )
        check_masked_count(most, cells, f"ratio {highest:g}")
        if self.smallest > most:
            raise ValueError(
                f"got smallest {self.smallest}, wanted at most {most}, the masked tokens of {cells}: lower it, or raise ratio"
            )

    def choose(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        """Draw blocks, then random cells up to the count."""
        mask = np.zeros(shape, dtype=bool)
        if rng.random() >= self.probability:
            return mask
        count = self._count(mask.size, rng)
        while (missing := count - int(mask.sum())) > 0:
            if not self._add(mask, missing, rng):
                break
        set_count(mask, count, rng)
        return mask

    def _count(self, cells: int, rng: np.random.Generator) -> int:
        if isinstance(self.ratio, float):
            return round(self.ratio * cells)
        return int(rng.uniform(*self.ratio) * cells)

    def _add(self, mask: np.ndarray, missing: int, rng: np.random.Generator) -> bool:
        """Add a block with 1 to `missing` new cells, in place; False: none of the attempts fits."""
        rows, columns = mask.shape
        for _ in range(TRIES):
            area = (
                self.smallest + (missing - self.smallest) * rng.random()
            )  # below `smallest` at the end, as in BEiT's code
            aspect = math.exp(rng.uniform(*np.log(self.aspect)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - int(block.sum()) <= missing:
                block[:] = True
                return True
        return False


class InverseBlocksLaw(MaskLaw):
    """Mask all but random squares: data2vec 2.0 (arXiv:2212.07525) and EAT (arXiv:2401.03497).

    Squares around random centres stay visible; then random cells are added or removed, so that their number is exact.

    Attributes:
        ratio: share of masked tokens; visible ones are rounded down.
        side: side of the visible squares in tokens. data2vec 2.0: 3, EAT: 5.
        adjust: addition to the visible share from which the number of squares follows, because squares overlap.
    """

    kind: Literal["inverse_blocks"] = "inverse_blocks"
    ratio: MaskRatio = 0.8
    side: int = Field(default=3, ge=1)
    adjust: float = Field(default=0.07, ge=0, lt=1)

    def check(self, shape: GridShape) -> None:
        """Refuse a grid on which no square or no cell would stay visible."""
        cells = shape[0] * shape[1]
        check_masked_count(cells - self._visible(cells), cells, f"ratio {self.ratio:g}")
        if self._squares(cells) < 1 or self.side > min(shape):
            raise ValueError(
                f"got side {self.side} on a grid of {shape[0]} x {shape[1]} tokens, of which {self._visible(cells)} stay visible: "
                "no such square fits; lower side"
            )

    def choose(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        """Draw the centres of the squares, then random cells up to the count."""
        cells = shape[0] * shape[1]
        visible = squares(rng.integers(cells, size=self._squares(cells)), self.side, shape)
        set_count(visible, self._visible(cells), rng)
        return ~visible

    def _visible(self, cells: int) -> int:
        return int(round(cells * (1 - self.ratio), 6))  # 100 * (1 - 0.8) is 19.999...

    def _squares(self, cells: int) -> int:
        return int(cells * (1 - self.ratio + self.adjust) / self.side**2)


def squares(centres: np.ndarray, side: int, shape: GridShape) -> np.ndarray:
    """Squares around centres (flat places), bool [rows, columns]; cells beyond the border count as those at it."""
    mask = np.zeros(shape, dtype=bool)
    row, column = np.divmod(centres, shape[1])
    for i in range(side):
        for j in range(side):
            rows = np.clip(row + i - side // 2, 0, shape[0] - 1)
            columns = np.clip(column + j - side // 2, 0, shape[1] - 1)
            mask[rows, columns] = True
    return mask
