"""Colour jitter: drawn once, and applied alike to a picture or to all frames of a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from mmssl.core.config import Config, Probability

if TYPE_CHECKING:
    from torch import Tensor

FactorRange = Annotated[float, Field(ge=0)]
HueRange = Annotated[float, Field(ge=0, le=0.5)]


class JitterConfig(Config):
    """Colour jitter: brightness, contrast, saturation and hue in random order, each by a random factor.

    Attributes:
        jitter: probability of the jitter.
        brightness, contrast, saturation: strength x; the factor is uniform in [max(0, 1 - x), 1 + x].
        hue: strength x; the shift is uniform in [-x, x] of the colour circle.
    """

    jitter: Probability = 0.8
    brightness: FactorRange = 0.8
    contrast: FactorRange = 0.8
    saturation: FactorRange = 0.8
    hue: HueRange = 0.2


def draw_jitter(config: JitterConfig, rng: np.random.Generator) -> list[list[Any]]:
    """Draw the colour changes [[name, amount], ...] in their order; empty without jitter. Those of strength 0 are left out."""
    if rng.random() >= config.jitter:
        return []
    ranges = {
        "brightness": (max(0.0, 1 - config.brightness), 1 + config.brightness),
        "contrast": (max(0.0, 1 - config.contrast), 1 + config.contrast),
        "saturation": (max(0.0, 1 - config.saturation), 1 + config.saturation),
        "hue": (-config.hue, config.hue),
    }
    drawn = [[name, float(rng.uniform(*ranges[name]))] for name in rng.permutation(list(ranges)).tolist()]
    return [[name, amount] for name, amount in drawn if ranges[name][0] < ranges[name][1]]


def change_colours(x: Tensor, jitter: list[list[Any]]) -> Tensor:
    """Apply the changes from `draw_jitter` to x, uint8 [..., 3, H, W]."""
    from torchvision.transforms.v2 import functional as tv  # slow to import, and only needed here

    change = {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "saturation": tv.adjust_saturation,
        "hue": tv.adjust_hue,
    }
    for name, amount in jitter:
        x = change[name](x, amount)
    return x


def to_grey(x: Tensor) -> Tensor:
    """Convert uint8 [..., 3, H, W] to greyscale, with three channels."""
    from torchvision.transforms.v2 import functional as tv

    grey: Tensor = tv.rgb_to_grayscale(x, num_output_channels=3)
    return grey
