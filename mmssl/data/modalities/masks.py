"""Random orders of tokens, for objectives that mask: masks are data, so they do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.modality import View


class TokenOrder(View):
    """int64 [T], a permutation of 0 ... T-1, the tokens of a view in reading order. Parameters: the order of the places.

    Args:
        places: tokens that are shuffled.
        times: tokens that stay together at each place, `places` apart from each other in reading order: tubes through all times of
            a clip (VideoMAE, arXiv:2203.12602, section 3.3), so that nothing hidden is to be seen a moment later.
            T = places x times.
    """

    def __init__(self, places: int, times: int = 1) -> None:
        self.places = places
        self.times = times

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """The permutation."""
        return {"order": rng.permutation(self.places).tolist()}

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The permutation as a tensor."""
        places = torch.tensor(parameters["order"], dtype=torch.int64)
        return (places[:, None] + self.places * torch.arange(self.times)).flatten()

    def blank(self) -> Tensor:
        """Reading order: still a permutation, so that code which gathers by it stands."""
        return torch.arange(self.places * self.times)
