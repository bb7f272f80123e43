"""Synchronized gain, modality dropout, and mixup of two samples."""

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
    """Gain: all sounds of a sample louder or softer, equally on all channels, so that their direction stays the same.

    Attributes:
        decibels: range of the gain in dB; limited so that no sound leaves [-1, 1].
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
        """Draw the gain in dB."""
        peaks = measured(self.kind, values, modalities).values()
        if not peaks:
            raise Skip("no_sound")
        room = -20 * math.log10(max(*peaks, 1e-6))
        wanted = float(rng.uniform(*self.decibels))
        return {"decibels": min(wanted, max(room, 0.0))}


class Dropout(Operation):
    """Modality dropout: remove modalities from a sample. The batch's `present` marks them, and objectives skip them.

    Draws are independent for each sample, which keeps at least one modality besides labels.

    Attributes:
        modalities: name -> probability of removal.
    """

    kind: Literal["dropout"] = "dropout"
    probability: Probability = 1.0
    modalities: dict[str, Probability] = Setting(min_length=1)

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the names of the modalities to remove."""
        coins = {name: float(rng.random()) < chance for name, chance in self.modalities.items()}
        content = [name for name in values if not modalities[name].label]
        dropped = [name for name in content if coins.get(name)]
        if content and len(dropped) == len(content):
            del dropped[int(rng.integers(len(dropped)))]
        return {"dropped": dropped}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Error messages for names that cannot be dropped."""
        content = [name for name, modality in modalities.items() if not modality.label]
        for name in self.modalities.keys() - set(content):
            yield f"dropout.modalities: got {name!r}{did_you_mean(name, content)}, wanted one of: {', '.join(content)}"


class Mixup(Operation):
    """Mixup of two samples with one weight for all modalities (Zhang et al. 2018; over modalities as in CAV-MAE).

    The operations before this one in the list are applied to the partner too. Pictures are mixed convexly. Sounds are mixed as
    waveforms, not as spectrograms, so that the weight is that of the perceived loudness at any level (Tokozume et al. 2018, arXiv
    1711.10282, eq. 2, with root mean squares as levels). A partner that lacks a modality or is unusable is not mixed in.

    Attributes:
        alpha: the weight is drawn from Beta(alpha, alpha); the partner has weight 1 - weight.
        text: "and": "A and B"; "heavier": the caption of the sample with the larger weight.
        labels: "refuse": refuse recipes with class labels; "soft": the label of the sample with the larger weight, and weight and
            partner in the record.
    """

    kind: Literal["mixup"] = "mixup"
    probability: Probability = 0.5
    alpha: float = Setting(default=1.0, gt=0)
    text: Literal["and", "heavier"] = "and"
    labels: Literal["refuse", "soft"] = "refuse"

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the weight of the sample; `Synchronized` adds the partner."""
        return {"weight": float(rng.beta(self.alpha, self.alpha)), "text": self.text}

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Error message for labels, which cannot be mixed."""
        labels = [name for name, modality in modalities.items() if modality.label]
        if labels and self.labels == "refuse":
            yield f"mixup would give modality {labels[0]!r} one class for two samples: remove mixup, or set mixup.labels to soft"
