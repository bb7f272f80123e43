"""A random choice as a view: labels of pretext tasks, such as rotations, permutations and orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor


class ChoiceConfig(Config):
    """Random number, independent of the content: the label of a pretext task, whose objective changes the content by it.

    Attributes:
        choices: n; the number is one of 0 to n - 1, equally likely. Rotations: 4.
    """

    kind: Literal["choice"] = "choice"
    choices: int = Field(ge=2)

    def build(self, *form: object) -> ChoiceView:
        """Build the view."""
        return ChoiceView(self.choices)


class ChoiceView(View):
    """Random number, int64 []: uniform in 0 to n - 1. Parameters: choice.

    Args:
        choices: n.
    """

    def __init__(self, choices: int) -> None:
        self.choices = choices

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the number."""
        return {"choice": int(rng.integers(self.choices))}

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The number as a tensor."""
        return to_tensor(np.array(parameters["choice"], dtype=np.int64))

    def blank(self) -> Tensor:
        """Zero."""
        return to_tensor(np.zeros((), dtype=np.int64))
