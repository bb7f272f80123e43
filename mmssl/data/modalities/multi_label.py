"""Several class labels of a sample: members with a vector of zeros and ones, one entry for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmssl.data.inspection import Inspection
from mmssl.data.kernel import Kernel
from mmssl.data.modalities.array_files import open_array
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.kernels.label import MULTI_LABELS
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View
from mmssl.data.timeline import Window

if TYPE_CHECKING:
    from torch import Tensor

MOST = 1_000_000
"""Classes above which a vector is refused by its header."""


class MultiLabelModality(Modality):
    """Multi-hot class labels: uint8 [K], 1 for each class that the sample has."""

    kernels: ClassVar[Mapping[str, Kernel]] = MULTI_LABELS
    label = True

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode a `.npy` vector of zeros and ones, of any type of numbers.

        Raises:
            DecodeError: "undecodable": no such vector; "too_large".
        """
        stored = open_array(data, None, MOST)
        if len(stored.shape) != 1:
            raise DecodeError("undecodable", f".{extension} has the shape {list(stored.shape)}, wanted [classes]")
        values = stored.read()
        if not np.isin(values, (0, 1)).all():
            raise DecodeError("undecodable", f".{extension} holds other numbers than 0 and 1, wanted 1 for each class")
        return values.astype(np.uint8)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Number of classes of the sample."""
        labels = self.decode(data, extension)
        return Inspection({"classes of a sample": [int(labels.sum())]}, {"classes": len(labels)})


class MultiLabelConfig(ModalityConfig):
    """Several class labels of a sample, by default in members `.npy` with zeros and ones, as CLIP_benchmark writes them."""

    kind: Literal["multi_label"] = "multi_label"

    def build(self, name: str) -> MultiLabelModality:
        """Build the modality with its name in the recipe."""
        views = {"value": MultiLabelView(), "eval": MultiLabelView()}
        return MultiLabelModality(name, self.extensions or ("npy",), views)


class MultiLabelView(View):
    """Multi-hot labels as int64 [K]; ragged, because nothing says K before the first sample."""

    ragged = True

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """The labels as a tensor."""
        return to_tensor(value.astype(np.int64))

    def blank(self) -> Tensor:
        """No class."""
        return to_tensor(np.zeros(0, np.int64))
