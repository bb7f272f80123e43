"""Place of a crop in its picture as a view, for objectives that match parts of two crops (VICRegL, DenseCL, A-CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor


class GeometryView(View):
    """Box and flip of a crop, float32 [5]: top, left, height and width as fractions of the picture; 1 if it is mirrored, else 0.

    The fractions are of the picture as it is after synchronized augmentation, which all views of a sample share. Parameters: box
    [top, left, height, width] in pixels, flip.

    Args:
        kind: kind of the crop; `crop.geometry3` is the geometry of `crop3`.
        crop: the crop, whose parameters have a box and a flip.
        sides: height and width of the pictures of a decoded value.
    """

    def __init__(self, kind: str, crop: View, sides: Callable[[Any], tuple[int, int]]) -> None:
        self.draws_as = kind
        self.crop = crop
        self.sides = sides

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw what the crop draws, and keep box and flip."""
        drawn = self.crop.draw(value, rng)
        return {"box": drawn["box"], "flip": drawn["flip"]}

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """Box and flip as a tensor."""
        height, width = self.sides(value)
        box = np.array(parameters["box"]) / (height, width, height, width)
        return to_tensor(np.array([*box, parameters["flip"]], dtype=np.float32))

    def blank(self) -> Tensor:
        """The whole picture, not mirrored."""
        return to_tensor(np.array([0, 0, 1, 1, 0], dtype=np.float32))
