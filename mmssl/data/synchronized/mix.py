"""Synchronized operations on what is there and how strong: gain, modality dropout, and mixing two samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from pydantic import model_validator

from mmssl.core.errors import did_you_mean
from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.image import ImageModality
from mmssl.data.modalities.label import LabelModality
from mmssl.data.modalities.text import Captions, TextModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import (
    ABSENT,
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
from mmssl.data.synchronized.time import fit_sound
from mmssl.data.timeline import Clip


class Gain(Operation):
    """All sounds of a sample louder or softer, the same on all channels, so that nothing changes its place.

    Attributes:
        decibels: range of the change; it ends where the loudest sample of a sound would leave [-1, 1].
    """

    kind: Literal["gain"] = "gain"
    probability: Probability = 0.5
    decibels: tuple[float, float] = (-6.0, 6.0)

    @model_validator(mode="after")
    def _ascending(self) -> Gain:
        if not -120 <= self.decibels[0] <= self.decibels[1] <= 120:
            raise ValueError(f"decibels: got {list(self.decibels)}, wanted [smallest, largest] within -120 to 120")
        return self

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """The change in decibels."""
        peaks = [
            float(np.abs(value).max(initial=0))
            for n, value in values.items()
            if isinstance(modalities[n], AudioModality)
        ]
        if not peaks:
            raise Skip("no_sound")
        room = -20 * math.log10(max(*peaks, 1e-6))
        wanted = float(rng.uniform(*self.decibels))
        return {"decibels": min(wanted, max(room, 0.0))}


class Dropout(Operation):
    """Modalities taken out of a sample: the batch's `present` says so, and objectives leave the sample out there.

    Each sample has coins of its own, and keeps one modality at least besides labels.

    Attributes:
        modalities: name -> probability that a sample loses it.
    """

    kind: Literal["dropout"] = "dropout"
    probability: Probability = 1.0
    modalities: dict[str, Probability] = Setting(min_length=1)

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Names of the modalities that are taken out."""
        coins = {name: float(rng.random()) < chance for name, chance in self.modalities.items()}
        content = [name for name in values if not isinstance(modalities[name], LabelModality)]
        dropped = [name for name in content if coins.get(name)]
        if content and len(dropped) == len(content):
            del dropped[int(rng.integers(len(dropped)))]
        return {"dropped": dropped}


class Mixup(Operation):
    """Two samples in one: one partner and one weight for all modalities (Zhang et al. 2018, over modalities as in CAV-MAE).

    The partner goes through the operations that come before this one in the list. Pictures are mixed convexly. Sounds are mixed
    as waveforms, never as spectrograms, so that the weight is that of what is heard, whatever their levels (Tokozume et al. 2018,
    arXiv 1711.10282, eq. 2, with root mean squares as levels). A partner that lacks a modality, or cannot be used, is not mixed in.

    Attributes:
        alpha: the weight is drawn from Beta(alpha, alpha); the rest is the partner's.
        text: "and": "A and B"; "heavier": the caption of the sample with the larger weight.
        labels: "refuse": a recipe with class labels cannot mix; "soft": the label is that of the heavier sample, and the record
            has the weight and the partner.
    """

    kind: Literal["mixup"] = "mixup"
    probability: Probability = 0.5
    alpha: float = Setting(default=1.0, gt=0)
    text: Literal["and", "heavier"] = "and"
    labels: Literal["refuse", "soft"] = "refuse"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """The weight of the sample itself; who the partner is, the one who loads samples adds."""
        return {"weight": float(rng.beta(self.alpha, self.alpha)), "text": self.text}


def _check_mixup(mixup: Mixup, modalities: Mapping[str, Modality]) -> Iterator[str]:
    labels = [name for name, modality in modalities.items() if isinstance(modality, LabelModality)]
    if labels and mixup.labels == "refuse":
        yield f"mixup would leave {labels[0]!r} with one class for two samples: take it out, or set mixup.labels to soft"


def _check_dropout(dropout: Dropout, modalities: Mapping[str, Modality]) -> Iterator[str]:
    content = [name for name, modality in modalities.items() if not isinstance(modality, LabelModality)]
    for name in dropout.modalities.keys() - set(content):
        yield f"dropout.modalities names {name!r}{did_you_mean(name, content)}; what can be dropped: {', '.join(content)}"


def _drop(value: Any, entry: Entry, field: Field) -> Any:
    return ABSENT if field.name in entry["dropped"] else value


def _scale(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    return wave * np.float32(10 ** (entry["decibels"] / 20))


def _blend(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Convex mixture of uint8 [..., H, W, 3]; the second is brought to the size of the first."""
    if a.shape[-3:] != b.shape[-3:]:
        planes = torch.from_numpy(np.ascontiguousarray(b.reshape(-1, *b.shape[-3:]))).permute(0, 3, 1, 2)
        size = (a.shape[-3], a.shape[-2])
        planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
        b = planes.permute(0, 2, 3, 1).numpy().reshape(*b.shape[:-3], *size, 3)
    mixed = np.float32(weight) * a.astype(np.float32) + np.float32(1 - weight) * b.astype(np.float32)
    out: np.ndarray = np.rint(mixed).astype(np.uint8)
    return out


def _mix_pictures(picture: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    return _blend(picture, field.partner, entry["weight"])


def _mix_clips(clip: Clip, entry: Entry, field: Field) -> Clip:
    other = field.partner
    shown = np.maximum(np.searchsorted(other.times, clip.times, side="right") - 1, 0)  # at each of our moments
    return Clip(_blend(clip.frames, other.frames[shown], entry["weight"]), clip.times, clip.seconds)


def _mix_sounds(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    other = fit_sound(field.partner, wave.shape[1])
    if len(other) != len(wave):
        wave, other = (np.repeat(x, 2 // len(x), axis=0) for x in (wave, other))
    weight = entry["weight"]
    level, others = (math.sqrt(float(np.mean(np.square(x, dtype=np.float64)))) for x in (wave, other))
    audible = min(level, others, weight, 1 - weight) > 0  # silence has no level to be matched
    share = 1 / (1 + level / others * (1 - weight) / weight) if audible else weight
    mixed = (share * wave + (1 - share) * other) / math.hypot(share, 1 - share)
    out: np.ndarray = (mixed / max(1.0, float(np.abs(mixed).max(initial=0)))).astype(np.float32)
    return out


def _mix_captions(captions: Captions, entry: Entry, field: Field) -> Captions:
    other: Captions = field.partner
    if entry["text"] == "heavier":
        return captions if entry["weight"] >= 0.5 else other
    texts = [f"{caption.rstrip(' .')} and {other[i % len(other)]}" for i, caption in enumerate(captions)]
    return Captions(texts, captions.weights)


def _mix_labels(label: int, entry: Entry, field: Field) -> int:
    return label if entry["weight"] >= 0.5 else int(field.partner)


_NO_SOUND = identity("only sounds have a level")

register(
    "gain",
    {
        AudioModality: Kernel(_scale),
        VideoModality: _NO_SOUND,
        ImageModality: _NO_SOUND,
        LabelModality: _NO_SOUND,
        TextModality: identity("captions name no level in numbers"),
    },
)
register(
    "dropout",
    {
        ImageModality: Kernel(_drop),
        VideoModality: Kernel(_drop),
        AudioModality: Kernel(_drop),
        TextModality: Kernel(_drop),
        LabelModality: identity("a label is an answer, not something seen or heard"),
    },
    _check_dropout,
)
register(
    "mixup",
    {
        ImageModality: Kernel(_mix_pictures),
        VideoModality: Kernel(_mix_clips),
        AudioModality: Kernel(_mix_sounds),
        TextModality: Kernel(_mix_captions),
        LabelModality: Kernel(_mix_labels),
    },
    _check_mixup,
)
