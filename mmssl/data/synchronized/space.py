"""Synchronized operations on space: the mirror, and crops, of everything that has a left and a right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field as Setting

from mmssl.core.errors import did_you_mean
from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.image import ImageModality
from mmssl.data.modalities.image_views import Range, Scale
from mmssl.data.modalities.label import LabelModality
from mmssl.data.modalities.text import Captions, TextModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.synchronized.caption_sides import swap_sides
from mmssl.data.synchronized.caption_words import Words, word_set
from mmssl.data.synchronized.operation import (
    Entry,
    Field,
    Kernel,
    Operation,
    Probability,
    Skip,
    Values,
    identity,
    register,
)
from mmssl.data.synchronized.time import rate_of
from mmssl.data.timeline import Clip

_WINDOW_SECONDS = 0.032  # of the spectra in which sounds are moved

Axes = Literal["xy", "x", "y", "none"]

PLACES = word_set(
    "top bottom upper lower middle center centre central corner corners edge edges side sides above below"
    " over under beneath background foreground border"
)
"""Words that say where in the picture something is, besides left and right."""


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


class Crop(Operation):
    """The same box of every picture, and stereo sound moved to where things are seen then. Captions that name a place forbid it.

    Sizes of pictures follow: views bring them to one.

    Attributes:
        scale: range of the box' share of the picture's area. ratio: range of its width over its height, times the picture's.
        axes: name of a picture or video -> which edges of the box cut it: "xy" both, "x" those at its sides, "y" upper and lower
            ones, "none" neither. Where there is more than one, such as a picture and its spectrogram, each must be named.
        pan: stereo sound is moved with what is seen ("remap"), made equal on both sides ("mono"), or left as it is ("ignore").
    """

    kind: Literal["crop"] = "crop"
    probability: Probability = 1.0
    scale: Scale = (0.5, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    axes: dict[str, Axes] = Setting(default_factory=dict)
    pan: Literal["remap", "mono", "ignore"] = "remap"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Box [left, top, width, height] in fractions of the picture, and the settings that kernels need."""
        if not any(isinstance(modality, ImageModality | VideoModality) for modality in map(modalities.get, values)):
            raise Skip("no_picture")
        area = float(rng.uniform(*self.scale))
        shape = float(np.exp(rng.uniform(*np.log(self.ratio)))) ** 0.5
        width = min(1.0, area**0.5 * shape)
        height = min(1.0, area**0.5 / shape)
        left, top = float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height))
        return {"box": [left, top, width, height], "axes": dict(self.axes), "pan": self.pan}


def _check_pictures(flip: Flip, modalities: Mapping[str, Modality]) -> Iterator[str]:
    pictures = [name for name, modality in modalities.items() if isinstance(modality, ImageModality)]
    for name in set(flip.without_sides) - set(pictures):
        yield f"flip.without_sides names {name!r}{did_you_mean(name, pictures)}; pictures are: {', '.join(pictures) or 'none'}"


def _check_axes(crop: Crop, modalities: Mapping[str, Modality]) -> Iterator[str]:
    rasters = [name for name, modality in modalities.items() if isinstance(modality, ImageModality | VideoModality)]
    for name in crop.axes.keys() - set(rasters):
        yield f"crop.axes names {name!r}{did_you_mean(name, rasters)}; pictures and videos are: {', '.join(rasters) or 'none'}"
    if len(rasters) > 1:
        for name in sorted(set(rasters) - crop.axes.keys()):
            yield f"crop.axes must say which edges of the box cut {name!r}, as there are several: one of xy, x, y, none"


def _bounds(start: float, length: float, pixels: int) -> slice:
    first = min(round(start * pixels), pixels - 1)
    return slice(first, max(first + 1, round((start + length) * pixels)))


def _crop_raster(frames: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    left, top, width, height = entry["box"]
    axes = entry["axes"].get(field.name, "xy")
    rows = _bounds(top, height, frames.shape[-3]) if "y" in axes else slice(None)
    columns = _bounds(left, width, frames.shape[-2]) if "x" in axes else slice(None)
    return np.ascontiguousarray(frames[..., rows, columns, :])


def _crop_clip(clip: Clip, entry: Entry, field: Field) -> Clip:
    return Clip(_crop_raster(clip.frames, entry, field), clip.times, clip.seconds)


def _crop_sound(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    left, _, width, _ = entry["box"]
    if len(wave) != 2 or entry["pan"] == "ignore":
        return wave
    if entry["pan"] == "mono":
        return np.repeat(wave.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)
    return remap_pan(wave, left, width, rate_of(field))


def _names_a_place(captions: Captions, entry: Entry, field: Field) -> str | None:
    for caption in captions:
        if swap_sides(caption).outcome != "unchanged" or not PLACES.isdisjoint(Words.of(caption).words):
            return "position_words"
    return None


def _turned(value: np.ndarray, axis: int) -> np.ndarray:
    # `ascontiguousarray` would leave an axis of length 1, such as a mono sound's, with the negative stride that torch refuses.
    return np.flip(value, axis).copy()


def _mirror_picture(picture: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    return picture if field.name in entry["without_sides"] else _turned(picture, 1)


def _mirror_clip(clip: Clip, entry: Entry, field: Field) -> Clip:
    return Clip(_turned(clip.frames, 2), clip.times, clip.seconds)


def _mirror_text(captions: Captions, entry: Entry, field: Field) -> Captions:
    return Captions([swap_sides(caption).text for caption in captions], captions.weights)


def _cannot_mirror(captions: Captions, entry: Entry, field: Field) -> str | None:
    return "ambiguous_caption" if any(swap_sides(caption).outcome == "ambiguous" for caption in captions) else None


register(
    "flip",
    {
        ImageModality: Kernel(_mirror_picture),
        VideoModality: Kernel(_mirror_clip),
        AudioModality: Kernel(lambda wave, entry, field: _turned(wave, 0)),
        TextModality: Kernel(_mirror_text, _cannot_mirror),
        LabelModality: identity("a class has no side"),
    },
    _check_pictures,
)
register(
    "crop",
    {
        ImageModality: Kernel(_crop_raster),
        VideoModality: Kernel(_crop_clip),
        AudioModality: Kernel(_crop_sound),
        TextModality: Kernel(lambda captions, entry, field: captions, _names_a_place),
        LabelModality: identity("a class has no place"),
    },
    _check_axes,
)


def remap_pan(wave: np.ndarray, left: float, width: float, rate: int) -> np.ndarray:
    """Move what is heard at fraction u of the old picture to (u - left) / width, in each cell of time and frequency by itself.

    Panning is that of constant power: a source at u has the gains cos(u pi / 2) and sin(u pi / 2). What stands outside of the new
    picture is heard from its edge. Turning both channels by the difference of the angles keeps power and phase, and leaves what
    was recorded without a place (as by two distant microphones) as diffuse as it was.

    Args:
        wave: float32 [2, N]. left: left edge of the new picture, as a fraction of the old one. width: its width, likewise.
        rate: samples a second.
    """
    size = 1 << max(5, round(math.log2(_WINDOW_SECONDS * rate)))
    sound = torch.from_numpy(np.ascontiguousarray(wave))
    window = torch.hann_window(size)
    spectra = torch.stft(sound, size, size // 4, window=window, pad_mode="constant", return_complex=True)  # [2, F, T]
    angle = torch.atan2(spectra[1].abs(), spectra[0].abs())
    turned = ((angle * (2 / math.pi) - left) / width).clamp(0, 1) * (math.pi / 2) - angle
    cosine, sine = turned.cos(), turned.sin()
    # Channels in opposite phase are turned the other way, as their angle is the mirrored one.
    sine = torch.where((spectra[0] * spectra[1].conj()).real < 0, -sine, sine)
    made = torch.stack([cosine * spectra[0] - sine * spectra[1], sine * spectra[0] + cosine * spectra[1]])
    wide = torch.istft(made, size, size // 4, window=window, length=wave.shape[1])
    out: np.ndarray = wide.numpy()
    return out
