"""Random permutations of tokens, for masking objectives, which keep the first or the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.masks.law import GridShape, TokenLaw
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor


class OrderLaw(TokenLaw):
    """Random permutation of the tokens of a view: MAE keeps the first ones, AudioMAE and CAV-MAE too."""

    kind: Literal["order"] = "order"

    def view(self, shape: GridShape, times: int = 1) -> TokenOrder:
        """Build the view."""
        return TokenOrder(shape[0] * shape[1] * times)


class TokenOrder(View):
    """Random permutation of the T tokens of a view, int64 [T]. Parameters: the order of the places.

    Args:
        places: number of places to shuffle.
        times: number of tokens that stay together at each place, `places` apart in reading order: tubes through all times of a
            clip (VideoMAE, arXiv:2203.12602, section 3.3), so that hidden content is hidden at all times. T = places x times.
    """

    def __init__(self, places: int, times: int = 1) -> None:
        self.places = places
        self.times = times

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the permutation."""
        return {"order": rng.permutation(self.places).tolist()}

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The permutation as a tensor."""
        places = np.array(parameters["order"], dtype=np.int64)
        return to_tensor((places[:, None] + self.places * np.arange(self.times)).flatten())

    def blank(self) -> Tensor:
        """The identity permutation, so that `gather` by it works."""
        return to_tensor(np.arange(self.places * self.times))
