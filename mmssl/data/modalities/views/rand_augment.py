"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): a few random operations of one magnitude, after a random resized crop.

Operations and magnitudes are torchvision's. All randomness is in the recorded parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.data.modalities.views.image import CropConfig, CropView, random_box, resize

if TYPE_CHECKING:
    from torch import Tensor

PictureOperation = Literal[
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
]  # fmt: skip
OPERATIONS: tuple[PictureOperation, ...] = PictureOperation.__args__  # type: ignore[attr-defined]
STRONGEST = 30

_SIGNED = {
    "shear_x": 0.3,  # tangent of the angle
    "shear_y": 0.3,
    "translate_x": 150 / 331,  # of the width
    "translate_y": 150 / 331,
    "rotate": 30.0,  # degrees
    "brightness": 0.9,  # factors of 1 - x and 1 + x
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
"""Largest amount of each operation, at the largest magnitude; the sign is random."""


class RandAugmentConfig(CropConfig):
    """RandAugment after a random resized crop.

    Attributes:
        operations: number of operations in sequence, drawn with replacement.
        magnitude: strength of all operations, 0 to 30.
        among: operations to choose from, equally likely. `color`, `contrast` and the like change colours that captions may name,
            `rotate` and `translate_x` change places: leave out those that would make captions false.
        fill: grey level, 0 to 255, of pixels from outside the picture.
    """

    kind: Literal["rand_augment"] = "rand_augment"
    operations: int = Field(default=2, ge=1)
    magnitude: int = Field(default=9, ge=0, le=STRONGEST)
    among: tuple[PictureOperation, ...] = Field(default=OPERATIONS, min_length=1)
    fill: int = Field(default=0, ge=0, le=255)

    def build(self, size: int) -> RandAugment:
        """The view, of `size` pixels unless its settings have a size."""
        return RandAugment(self, self.size or size)


class RandAugment(CropView):
    """RandAugment after a random resized crop: uint8 [3, size, size]. Parameters: box, flip, operations [[name, amount], ...]."""

    def __init__(self, config: RandAugmentConfig, size: int) -> None:
        super().__init__(size)
        self.config = config

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the parameters of all operations."""
        c = self.config
        return {
            "box": random_box(value.shape[0], value.shape[1], c.scale, c.ratio, rng),
            "flip": bool(rng.random() < c.flip),
            "operations": [self._draw(c.among[int(rng.integers(len(c.among)))], rng) for _ in range(c.operations)],
        }

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Apply all operations."""
        x = resize(value, parameters["box"], (self.size, self.size), self.config.interpolation)
        if parameters["flip"]:
            x = x.flip(-1)
        for name, amount in parameters["operations"]:
            x = apply_operation(x, name, amount, self.config.fill)
        return x.contiguous()

    def _draw(self, name: PictureOperation, rng: np.random.Generator) -> list[Any]:
        strength = self.config.magnitude / STRONGEST
        if name in _SIGNED:
            return [name, _SIGNED[name] * strength * (1 if rng.random() < 0.5 else -1)]
        return [name, {"posterize": 8 - round(4 * strength), "solarize": 1 - strength}.get(name, 0)]


def apply_operation(x: Tensor, name: PictureOperation, amount: float, fill: int) -> Tensor:
    """Apply one operation to a picture uint8 [3, H, W].

    Args:
        x: the picture.
        name: of the operation.
        amount: shear: tangent of the angle; translate: share of the side; rotate: degrees, counter-clockwise; brightness, color,
            contrast, sharpness: the factor minus 1; posterize: bits to keep; solarize: level from 0 to 1 above which pixels are
            inverted; others: ignored.
        fill: grey level of pixels from outside the picture.
    """
    from torchvision.transforms.v2 import functional as tv  # slow to import, and only needed here

    height, width = x.shape[-2:]
    angle = math.degrees(math.atan(amount))
    shift = {"translate_x": [int(amount * width), 0], "translate_y": [0, int(amount * height)]}
    made: Tensor
    match name:
        case "identity":
            made = x
        case "shear_x" | "shear_y":
            shear = [angle, 0.0] if name == "shear_x" else [0.0, angle]
            made = tv.affine(x, 0.0, [0, 0], 1.0, shear, fill=[float(fill)], center=[0.0, 0.0])
        case "translate_x" | "translate_y":
            made = tv.affine(x, 0.0, shift[name], 1.0, [0.0, 0.0], fill=[float(fill)])
        case "rotate":
            made = tv.rotate(x, amount, fill=[float(fill)])
        case "brightness":
            made = tv.adjust_brightness(x, 1 + amount)
        case "color":
            made = tv.adjust_saturation(x, 1 + amount)
        case "contrast":
            made = tv.adjust_contrast(x, 1 + amount)
        case "sharpness":
            made = tv.adjust_sharpness(x, 1 + amount)
        case "posterize":
            made = tv.posterize(x, int(amount))
        case "solarize":
            made = tv.solarize(x, 255 * amount)
        case "auto_contrast":
            made = tv.autocontrast(x)
        case "equalize":
            made = tv.equalize(x)
    return made
