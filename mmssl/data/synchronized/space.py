"""Synchronized operations on space: the mirror, and crops, of everything that has a left and a right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting

from mmssl.core.config import Probability, Range, Share
from mmssl.core.errors import did_you_mean
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values

Axes = Literal["xy", "x", "y", "none"]


class Flip(Operation):
    """Left and right exchanged: pictures mirrored, stereo channels swapped, sides in captions swapped.

    A caption that leaves it open which words name a side keeps the whole sample as it is. Writing in the picture is mirrored too.

    Attributes:
        without_sides: names of pictures whose width is no direction in space, such as spectrograms: they stay.
    """

    kind: Literal["flip"] = "flip"
    probability: Probability = 0.5
    without_sides: tuple[str, ...] = ()

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Nothing but the setting: there is one mirror."""
        return {"without_sides": list(self.without_sides)}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Names that are no pictures."""
        pictures = [name for name, modality in modalities.items() if modality.visual and not modality.moving]
        for name in set(self.without_sides) - set(pictures):
            yield f"flip.without_sides names {name!r}{did_you_mean(name, pictures)}; pictures are: {', '.join(pictures) or 'none'}"


class Crop(Operation):
    """The same box of every picture, and stereo sound moved to where things are seen then. Captions that name a place forbid it.

    Sizes of pictures follow: views bring them to one.

    Attributes:
        scale: range of the box' share of the picture's area.
        ratio: range of the box' width over its height, times the picture's.
        axes: name of a picture or video -> which edges of the box cut it: "xy" both, "x" those at its sides, "y" upper and lower
            ones, "none" neither. Where there is more than one, such as a picture and its spectrogram, each must be named.
        pan: stereo sound is moved with what is seen ("remap"), made equal on both sides ("mono"), or left as it is ("ignore").
    """

    kind: Literal["crop"] = "crop"
    probability: Probability = 1.0
    scale: Share = (0.5, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    axes: dict[str, Axes] = Setting(default_factory=dict)
    pan: Literal["remap", "mono", "ignore"] = "remap"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Box [left, top, width, height] in fractions of the picture, and the settings that kernels need."""
        if not any(modalities[name].visual for name in values):
            raise Skip("no_picture")
        area = float(rng.uniform(*self.scale))
        shape = float(np.exp(rng.uniform(*np.log(self.ratio)))) ** 0.5
        width = min(1.0, area**0.5 * shape)
        height = min(1.0, area**0.5 / shape)
        left, top = float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height))
        return {"box": [left, top, width, height], "axes": dict(self.axes), "pan": self.pan}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Names that have no picture, and pictures that are not named where there are several."""
        rasters = [name for name, modality in modalities.items() if modality.visual]
        for name in self.axes.keys() - set(rasters):
            yield f"crop.axes names {name!r}{did_you_mean(name, rasters)}; pictures and videos are: {', '.join(rasters) or 'none'}"
        if len(rasters) > 1:
            for name in sorted(set(rasters) - self.axes.keys()):
                yield f"crop.axes must say which edges of the box cut {name!r}, as there are several: one of xy, x, y, none"
