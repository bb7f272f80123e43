"""Synchronized operations on what is there and how strong: gain, modality dropout, and mixing two samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from mmssl.core.config import LOW_HIGH, Probability
from mmssl.core.errors import did_you_mean
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values, measured


class Gain(Operation):
    """All sounds of a sample louder or softer, the same on all channels, so that nothing changes its place.

    Attributes:
        decibels: range of the change; it ends where the loudest sample of a sound would leave [-1, 1].
    """

    kind: Literal["gain"] = "gain"
    probability: Probability = 0.5
    decibels: Annotated[tuple[float, float], LOW_HIGH] = (-6.0, 6.0)

    @model_validator(mode="after")
    def _ascending(self) -> Gain:
        if not -120 <= self.decibels[0] <= self.decibels[1] <= 120:
            raise ValueError(f"decibels: got {list(self.decibels)}, wanted [smallest, largest] within -120 to 120")
        return self

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """The change in decibels."""
        peaks = measured(self.kind, values, modalities).values()
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
        content = [name for name in values if not modalities[name].label]
        dropped = [name for name in content if coins.get(name)]
        if content and len(dropped) == len(content):
            del dropped[int(rng.integers(len(dropped)))]
        return {"dropped": dropped}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Names that cannot be dropped."""
        content = [name for name, modality in modalities.items() if not modality.label]
        for name in self.modalities.keys() - set(content):
            yield f"dropout.modalities names {name!r}{did_you_mean(name, content)}; what can be dropped: {', '.join(content)}"


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

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Labels that would be of one sample only."""
        labels = [name for name, modality in modalities.items() if modality.label]
        if labels and self.labels == "refuse":
            yield f"mixup would leave {labels[0]!r} with one class for two samples: take it out, or set mixup.labels to soft"
