"""Synchronized horizontal flip and crop of pictures, stereo sound and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting

from mmssl.core.config import Probability, Range, Share
from mmssl.core.errors import did_you_mean
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values

CropAxes = Literal["xy", "x", "y", "none"]


class Flip(Operation):
    """Synchronized horizontal flip: mirror pictures, swap stereo channels, and swap left and right in captions.

    A caption with ambiguous sides leaves the whole sample unchanged. Text in the picture is mirrored too.

    Attributes:
        without_sides: names of pictures whose width is not a direction in space, such as spectrograms: they are not mirrored.
    """

    kind: Literal["flip"] = "flip"
    probability: Probability = 0.5
    without_sides: tuple[str, ...] = ()

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """No random parameters: only the setting."""
        return {"without_sides": list(self.without_sides)}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Error messages for names that are not pictures."""
        pictures = [name for name, modality in modalities.items() if modality.visual and not modality.moving]
        for name in set(self.without_sides) - set(pictures):
            yield f"flip.without_sides: got {name!r}{did_you_mean(name, pictures)}, wanted one of: {', '.join(pictures) or 'none'}"


class Crop(Operation):
    """Synchronized crop: the same box of every picture, with stereo sound panned to match. Captions that name a place prevent it.

    Pictures change their size; views resize them.

    Attributes:
        scale: range of the box's share of the picture's area.
        ratio: range of the box's width over its height, times the picture's.
        axes: name of a picture or video -> axes to crop: "xy" both, "x" width, "y" height, "none" neither. With more than one, such
            as a picture and its spectrogram, each must be named.
        pan: stereo sound is panned with the picture ("remap"), made equal on both sides ("mono"), or unchanged ("ignore").
    """

    kind: Literal["crop"] = "crop"
    probability: Probability = 1.0
    scale: Share = (0.5, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    axes: dict[str, CropAxes] = Setting(default_factory=dict)
    pan: Literal["remap", "mono", "ignore"] = "remap"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw a box [left, top, width, height] in fractions of the picture; with the settings that kernels need."""
        if not any(modalities[name].visual for name in values):
            raise Skip("no_picture")
        area = float(rng.uniform(*self.scale))
        shape = float(np.exp(rng.uniform(*np.log(self.ratio)))) ** 0.5
        width = min(1.0, area**0.5 * shape)
        height = min(1.0, area**0.5 / shape)
        left, top = float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height))
        return {"box": [left, top, width, height], "axes": dict(self.axes), "pan": self.pan}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Error messages for names that are not pictures, and for missing names if there are several pictures."""
        rasters = [name for name, modality in modalities.items() if modality.visual]
        for name in self.axes.keys() - set(rasters):
            yield f"crop.axes: got {name!r}{did_you_mean(name, rasters)}, wanted one of: {', '.join(rasters) or 'none'}"
        if len(rasters) > 1:
            for name in sorted(set(rasters) - self.axes.keys()):
                yield f"crop.axes: got no entry for {name!r}, wanted one of xy, x, y, none, as there are several pictures"
