"""Image views (crops and augmentation): uint8 arrays [H, W, 3] to uint8 tensors [3, size, size].

Crops are resized in uint8 with antialiasing, from full resolution: equal to Pillow, and so to open_clip, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.config import Config, Probability, Range, Share
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.open_clip_pictures import StoredPicture
from mmssl.data.modalities.views.batch_colours import augment_batch, gaussian_weights
from mmssl.data.modalities.views.colours import JitterConfig, change_colours, draw_jitter, to_grey
from mmssl.data.modalities.views.geometry import GeometryView
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.core.encoder import Encoder

Interpolation = Literal["bicubic", "bilinear"]
Fit = Literal["crop", "squash"]
RATIO = (3 / 4, 4 / 3)
"""Range of aspect ratios (width / height) of random crops, torchvision's default."""
MAX_ASPECT = (
    8  # more elongated pictures are centre-cropped first: a picture one pixel high would be resized to gigabytes
)


class CropConfig(Config):
    """Size and random resized crop that views of pictures share.

    Attributes:
        size: height and width of the view in pixels, e.g. 96 for local crops; None: the modality's.
        scale: range of the crop's share of the area.
        ratio: range of the crop's width / height (log-uniform).
        interpolation: filter of the resizing, with antialiasing.
        flip: probability of a horizontal flip.
    """

    size: int | None = Field(default=None, ge=8)
    scale: Share = (0.08, 1.0)
    ratio: Range = RATIO
    interpolation: Interpolation = "bicubic"
    flip: Probability = 0.5

    def least_side(self, size: int) -> int:
        """Shorter side in pixels of a picture from which on its smallest crop has `size` pixels, so that none is enlarged."""
        elongated = max(self.ratio[1], 1 / self.ratio[0])
        return math.ceil((self.size or size) * math.sqrt(elongated / self.scale[0]))


class ResizedCropConfig(CropConfig):
    """Random resized crop, as torchvision's RandomResizedCrop. The defaults are open_clip's for training."""

    kind: Literal["resized_crop"] = "resized_crop"
    scale: Share = (0.9, 1.0)
    flip: Probability = 0.0

    def build(self, size: int) -> ResizedCrop:
        """The view, of `size` pixels unless its settings have a size."""
        return ResizedCrop(self, self.size or size)


class SimClrViewConfig(CropConfig, JitterConfig):
    """The augmentation of SimCLR (Chen et al. 2020, appendix A); with `solarize` that of BYOL, Barlow Twins, DINO and MoCo v3.

    BYOL (arXiv:2006.07733, appendix B), Barlow Twins and DINO use jitter of 0.4, 0.4, 0.2, 0.1 (MoCo v3 and SLIP: 0.4, 0.4, 0.4,
    0.1) and two kinds of views: one with blur 1.0, one with blur 0.1 and solarize 0.2. DINO's local crops have size 96, blur 0.5.

    Attributes:
        grayscale: probability of greyscale.
        blur: probability of a Gaussian blur.
        sigma: range of the blur's standard deviation in pixels.
        blur_kernel: width of the blur's kernel as a share of the picture's width.
        solarize: probability of a solarization, the last operation: values from `solarize_threshold` on are inverted.
        solarize_threshold: smallest value, of 0 to 255, that is inverted.
        where: "loader", or "device": after crop and flip, the pictures of a batch are changed on the training device together, each
            by what was drawn for it. The same views, up to one level of 255.
    """

    kind: Literal["simclr"] = "simclr"
    grayscale: Probability = 0.2
    blur: Probability = 0.5
    sigma: Range = (0.1, 2.0)
    blur_kernel: float = Field(default=0.1, gt=0, le=0.5)
    solarize: Probability = 0.0
    solarize_threshold: int = Field(default=128, ge=1, le=255)
    where: Literal["loader", "device"] = "loader"

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.solarize == 0 and self.solarize_threshold != 128:
            raise ValueError(
                f"got solarize_threshold {self.solarize_threshold} without solarize, where it has no effect: "
                "set solarize, or remove the threshold"
            )
        return self

    def build(self, size: int) -> SimClrView:
        """The view, of `size` pixels unless its settings have a size."""
        return SimClrView(self, self.size or size)


class CropView(View):
    """Base of the views of one random resized crop: uint8 [3, size, size]. Its companion `KIND.geometry` is box and flip.

    Args:
        size: height and width of the view in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = self.pixels = size

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((3, self.size, self.size), dtype=np.uint8))

    def companions(self, kind: str) -> Mapping[str, View]:
        """Box and flip."""
        return {f"{kind}.geometry": GeometryView(kind, self, _sides)}


class ResizedCrop(CropView):
    """Random resized crop: uint8 [3, size, size]. Parameters: box [top, left, height, width], flip."""

    def __init__(self, config: ResizedCropConfig, size: int) -> None:
        super().__init__(size)
        self.config = config

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw box and flip."""
        box = random_box(value.shape[0], value.shape[1], self.config.scale, self.config.ratio, rng)
        return {"box": box, "flip": bool(rng.random() < self.config.flip)}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop, resize and flip."""
        x = resize(value, parameters["box"], (self.size, self.size), self.config.interpolation)
        return x.flip(-1) if parameters["flip"] else x


class SimClrView(CropView):
    """SimCLR augmentation: crop, flip, colour jitter, greyscale, blur, solarization. uint8 [3, size, size].

    Parameters: box, flip, jitter [[name, amount], ...] in order, grayscale, sigma (0: no blur), solarize.
    """

    def __init__(self, config: SimClrViewConfig, size: int) -> None:
        super().__init__(size)
        self.config = config
        self.on_device = config.where == "device"

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the parameters of all operations."""
        c = self.config
        jitter = draw_jitter(c, rng)
        return {
            "jitter": jitter,
            "box": random_box(value.shape[0], value.shape[1], c.scale, c.ratio, rng),
            "flip": bool(rng.random() < c.flip),
            "grayscale": bool(rng.random() < c.grayscale),
            "sigma": float(rng.uniform(*c.sigma)) if rng.random() < c.blur else 0.0,
            "solarize": bool(rng.random() < c.solarize),
        }

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Apply all operations; if the device applies the others, crop and flip."""
        x = resize(value, parameters["box"], (self.size, self.size), self.config.interpolation).contiguous()
        if parameters["flip"]:
            x = x.flip(-1)
        if self.on_device:
            return x
        x = change_colours(x, parameters["jitter"])
        if parameters["grayscale"]:
            x = to_grey(x)
        if parameters["sigma"]:
            x = gaussian_blur(x, self.config.blur_kernel, parameters["sigma"])
        if parameters["solarize"]:
            x = x.where(x < self.config.solarize_threshold, 255 - x)
        return x.contiguous()

    def finish(self, x: Tensor, parameters: Sequence[Mapping[str, Any] | None], encoder: Encoder) -> Tensor:
        """Apply colour jitter, greyscale, blur and solarization to uint8 [B, 3, H, W]."""
        return augment_batch(x, parameters, self.config.blur_kernel, self.config.solarize_threshold)


class EvalView(View):
    """Evaluation transform: shortest side resized and centre crop, or both sides resized. uint8 [3, size, size]."""

    def __init__(self, size: int, fit: Fit = "crop", interpolation: Interpolation = "bicubic") -> None:
        self.size = self.pixels = size
        self.fit, self.interpolation = fit, interpolation

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Resize, and centre-crop if asked to."""
        if self.fit == "squash":
            return resize(value, [0, 0, *value.shape[:2]], (self.size, self.size), self.interpolation).contiguous()
        return centre_crop(value, self.size, self.interpolation)

    def resized(self, pixels: int) -> EvalView:
        """The view of other pixels."""
        return EvalView(pixels, self.fit, self.interpolation)

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((3, self.size, self.size), dtype=np.uint8))


def centre_crop(value: np.ndarray | StoredPicture, size: int, interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize the shortest side of a picture to `size`, and crop the centre: uint8 [3, size, size]."""
    height, width = value.shape[:2]
    short = min(height, width)
    top, left = max(0, height - MAX_ASPECT * short) // 2, max(0, width - MAX_ASPECT * short) // 2
    height, width = min(height, MAX_ASPECT * short), min(width, MAX_ASPECT * short)
    target = (size * height // short, size * width // short)
    x = resize(value, [top, left, height, width], target, interpolation)
    row, column = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return x[:, row : row + size, column : column + size].contiguous()


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> list[int]:
    """Draw a box [top, left, height, width] as torchvision's RandomResizedCrop: ten tries, then the largest centred box."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w]
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


def resize(
    value: np.ndarray | StoredPicture, box: list[int], size: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Crop the box [top, left, height, width] of a picture and resize it with antialiasing to uint8 [3, *size].

    Pixels uint8 [H, W, 3] by torch, pictures in the mode of their file by Pillow.

    The result is channels-last in memory, like the picture: a copy to contiguous planes would take a quarter more time.
    """
    if isinstance(value, StoredPicture):
        return to_tensor(value.resized(box, size, interpolation)).permute(2, 0, 1)
    import torch  # slow to import, as in `to_tensor`

    top, left, height, width = box
    if (height, width) == size:
        return torch.from_numpy(value[top : top + height, left : left + width].copy()).permute(2, 0, 1)
    # torch's kernel would copy a crop itself, in twice the time.
    crop = np.ascontiguousarray(value[top : top + height, left : left + width])
    x = torch.from_numpy(crop).permute(2, 0, 1)[None]
    out = torch.empty((1, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    kernel = _resize_kernels().get(interpolation)
    if kernel is None:
        return torch.nn.functional.interpolate(x, size, mode=interpolation, antialias=True)[0]
    kernel(x, size, out)
    return out[0]


def _sides(value: np.ndarray | StoredPicture) -> tuple[int, int]:
    return value.shape[0], value.shape[1]


@cache
def _resize_kernels() -> Mapping[str, Callable[..., Tensor]]:
    from mmssl.core.compat import resize_kernels

    return resize_kernels()


def gaussian_blur(x: Tensor, kernel: float, sigma: float) -> Tensor:
    """Blur uint8 [C, H, W] with reflected borders; the kernel is `kernel` of the width, made odd.

    Separable passes by shifted sums equal torchvision's two-dimensional kernel up to rounding, in a ninth of its time.
    """
    from torch.nn.functional import pad  # slow to import, as in `to_tensor`

    radius = max(1, int(x.shape[-1] * kernel / 2))
    weights = gaussian_weights(sigma, radius)
    _, height, width = x.shape
    y = pad(x.float()[None], (radius, radius, radius, radius), mode="reflect")[0]
    rows = y[:, :, :width] * weights[0]
    for i, w in enumerate(weights[1:], 1):
        rows.add_(y[:, :, i : i + width], alpha=w)
    out = rows[:, :height] * weights[0]
    for i, w in enumerate(weights[1:], 1):
        out.add_(rows[:, i : i + height], alpha=w)
    return out.round_().clamp_(0, 255).byte()
