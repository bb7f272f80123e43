"""Views of arrays with a height and a width: [H, W, C] of any type to float32 tensors [C, size, size], in the units of the file.

Crops are resized as floats with antialiasing, each channel alone. Normalisation belongs to the encoder's `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmssl.core.config import Probability, Share
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.views.geometry import GeometryView
from mmssl.data.modalities.views.image import CropConfig, Interpolation, random_box
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor


class ArrayCropConfig(CropConfig):
    """Random resized crop of all channels alike, with flips and right-angle turns; defaults as those of pictures.

    Attributes:
        turns: turn by 0, 90, 180 or 270 degrees, equally likely: for pictures from above, in which no side is up. With `flip` 0.5
            these are all eight symmetries of the square (Cohen and Welling 2016, arXiv:1602.07576).
    """

    kind: Literal["resized_crop"] = "resized_crop"
    scale: Share = (0.9, 1.0)
    flip: Probability = 0.0
    turns: bool = False

    def build(self, size: int, channels: int | None) -> ArrayCrop:
        """The view, of `size` pixels unless its settings have a size."""
        return ArrayCrop(self, self.size or size, channels)


class ArrayCrop(View):
    """Random resized crop: float32 [C, size, size]. Parameters: box [top, left, height, width], flip, turns (of 90 degrees).

    Without turns it has the companion `KIND.geometry`, box and flip.

    Args:
        config: its settings.
        size: height and width in pixels.
        channels: C; None: as stored.
    """

    def __init__(self, config: ArrayCropConfig, size: int, channels: int | None) -> None:
        self.config = config
        self.size = self.pixels = size
        self.channels = channels

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw box, flip and turns."""
        box = random_box(value.shape[0], value.shape[1], self.config.scale, self.config.ratio, rng)
        flip = bool(rng.random() < self.config.flip)
        return {"box": box, "flip": flip, "turns": int(rng.integers(4)) if self.config.turns else 0}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop, resize, flip, then turn counterclockwise."""
        x = resize_floats(value, parameters["box"], (self.size, self.size), self.config.interpolation)
        x = x.flip(-1) if parameters["flip"] else x
        return x.rot90(parameters["turns"], (-2, -1)).contiguous()

    def blank(self) -> Tensor:
        """Zeros."""
        return to_tensor(np.zeros((self.channels or 1, self.size, self.size), np.float32))

    def companions(self, kind: str) -> Mapping[str, View]:
        """Box and flip, where these say all."""
        return {} if self.config.turns else {f"{kind}.geometry": GeometryView(kind, self, _sides)}


class ArrayEval(View):
    """Deterministic view: the largest centred square, resized. float32 [C, size, size].

    Args:
        size: height and width in pixels.
        channels: C; None: as stored.
    """

    def __init__(self, size: int, channels: int | None) -> None:
        self.size = self.pixels = size
        self.channels = channels

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop and resize."""
        height, width = _sides(value)
        side = min(height, width)
        box = [(height - side) // 2, (width - side) // 2, side, side]
        return resize_floats(value, box, (self.size, self.size), "bicubic")

    def resized(self, pixels: int) -> ArrayEval:
        """The view of other pixels."""
        return ArrayEval(pixels, self.channels)

    def blank(self) -> Tensor:
        """Zeros."""
        return to_tensor(np.zeros((self.channels or 1, self.size, self.size), np.float32))


def resize_floats(value: np.ndarray, box: list[int], size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Crop the box [top, left, height, width] of [H, W, C] and resize it with antialiasing: float32 [C, *size], contiguous."""
    import torch  # slow to import, as in `to_tensor`

    top, left, height, width = box
    part = np.ascontiguousarray(value[top : top + height, left : left + width].transpose(2, 0, 1), dtype=np.float32)
    x = torch.from_numpy(part)
    if (height, width) == size:
        return x if not np.shares_memory(part, value) else x.clone()
    return torch.nn.functional.interpolate(x[None], size, mode=interpolation, antialias=True)[0]


def _sides(value: np.ndarray) -> tuple[int, int]:
    return value.shape[0], value.shape[1]
