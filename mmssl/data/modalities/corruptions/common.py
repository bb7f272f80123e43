"""Common corruptions of pictures (Hendrycks and Dietterich 2019, arXiv:1903.12261): ImageNet-C's 15 kinds, and its four extra ones.

Strengths are the published ones of each severity; lengths in pixels, which are those of pictures of 224, are in proportion for
others. Noise, `gaussian_blur`, `brightness`, `contrast`, `pixelate` and `jpeg` are the published transforms. The others follow the
published law by other rules: `defocus_blur` has a disc whose edge falls over one pixel; `glass_blur` copies colours of near
pixels and swaps none; the trails of `motion_blur` and `snow` are bilinear; clouds of `fog` are sums of noise on finer and finer
grids, not diamond-square; `frost` draws a texture of ice, since no photographs of frost are shipped; the waves of
`elastic_transform` repeat beyond the edges; drops of water in `spatter` are flat; `saturate` leaves grey pixels grey. Scores are
near those on ImageNet-C's files, not equal to them, also because its files are JPEG of quality 85 and views are not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmssl.data.corruption import Corruption
from mmssl.data.modalities.corruptions.blurs import BLURS, ELASTIC, GAUSSIAN_BLUR
from mmssl.data.modalities.corruptions.weather import SPATTER, WEATHER

if TYPE_CHECKING:
    from torch import Generator, Tensor


def _gaussian_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return x + strength * x.new_empty(x.shape).normal_(generator=generator)


def _shot_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    return torch.poisson(x * strength, generator=generator) / strength


def _impulse_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    draw = x.new_empty(x.shape).uniform_(generator=generator)
    return x.where(draw >= strength, (draw < strength / 2).to(x.dtype))


def _speckle_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return x + x * strength * x.new_empty(x.shape).normal_(generator=generator)


def _brightness(x: Tensor, strength: float, generator: Generator) -> Tensor:
    value = x.amax(-3, keepdim=True)  # V of HSV
    brighter = (value + strength).clamp_max(1)
    return (x * (brighter / value.clamp_min(1e-6))).where(value > 0, brighter)  # black becomes grey


def _saturate(x: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """S of HSV times a factor, and a constant more; grey stays grey."""
    factor, more = strength
    value, least = x.amax(-3, keepdim=True), x.amin(-3, keepdim=True)
    saturation = (value - least) / value.clamp_min(1e-6)
    wanted = (saturation * factor + more).clamp(0, 1)
    return value - (value - x) * wanted / saturation.clamp_min(1e-6)


def _contrast(x: Tensor, strength: float, generator: Generator) -> Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * strength + mean


def _pixelate(x: Tensor, strength: float, generator: Generator) -> Tensor:
    from torch.nn.functional import interpolate

    flat = x.flatten(0, -4) if x.ndim > 3 else x[None]
    size = [max(1, int(side * strength)) for side in x.shape[-2:]]
    small = interpolate(flat, size=size, mode="area")
    return interpolate(small, size=list(x.shape[-2:]), mode="nearest").reshape(x.shape)


def _jpeg(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    frames = (x.clamp(0, 1) * 255).round().byte().reshape(-1, *x.shape[-3:]).permute(0, 2, 3, 1).numpy()
    decoded = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=int(strength))
        decoded.append(torch.from_numpy(np.array(Image.open(file, formats=("JPEG",)))))
    return torch.stack(decoded).permute(0, 3, 1, 2).reshape(x.shape).to(x.dtype) / 255


COMMON: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    **BLURS,
    **WEATHER,
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": ELASTIC,
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(_jpeg, (25, 18, 15, 10, 7)),
}
"""The 15 kinds of ImageNet-C, of pictures and of the frames of clips."""
EXTRA: Mapping[str, Corruption] = {
    "speckle_noise": Corruption(_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": GAUSSIAN_BLUR,
    "spatter": SPATTER,
    "saturate": Corruption(_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
}
"""Its four further kinds, which its authors keep for validation."""
