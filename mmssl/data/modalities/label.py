"""Class labels: members with one integer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmssl.data.inspection import Inspection
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.kernels.label import LABELS
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View
from mmssl.data.timeline import Window

if TYPE_CHECKING:
    from torch import Tensor


_NUMBER = re.compile(rb"\s*([0-9]{1,18})\s*")


class LabelModality(Modality):
    """Class labels as integers."""

    kernels = LABELS
    label = True

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> int:
        """Decode to the class number.

        Raises:
            DecodeError: "undecodable": not a non-negative integer in digits.
        """
        match = _NUMBER.fullmatch(data)
        if match is None:
            raise DecodeError(
                "undecodable", f".{extension} holds {data[:40]!r}, wanted a class number of at least 0 in digits"
            )
        return int(match[1])

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Count the class."""
        return Inspection(counted={"class": self.decode(data, extension)})


class LabelConfig(ModalityConfig):
    """Class labels, by default in members `.cls`, as WebDataset writes them."""

    kind: Literal["label"] = "label"

    @classmethod
    def usual(cls) -> LabelConfig:
        """Class numbers in `.cls`."""
        return cls()

    def build(self, name: str) -> LabelModality:
        """Build the modality with its name in the recipe."""
        return LabelModality(name, self.extensions or ("cls",), {"value": LabelView(), "eval": LabelView()})


class LabelView(View):
    """Class number as int64 scalar []."""

    def draw(self, value: int, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: int, parameters: Mapping[str, Any]) -> Tensor:
        """The class number as a tensor."""
        return to_tensor(np.array(value, dtype=np.int64))

    def blank(self) -> Tensor:
        """-1, which is no class."""
        return to_tensor(np.array(-1, dtype=np.int64))
