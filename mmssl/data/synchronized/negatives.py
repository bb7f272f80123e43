"""Negatives with a label: one relation between the modalities of a sample broken on purpose, and the record says which.

For heads that learn to tell what belongs together (Korbar et al. 2018, arXiv 1807.00230; Yang et al. 2020, "Telling Left from
Right"). The picture stays; the sound or the caption leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting

from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.image import ImageModality
from mmssl.data.modalities.label import LabelModality
from mmssl.data.modalities.text import Captions, TextModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.synchronized.caption_order import swap_order
from mmssl.data.synchronized.caption_sides import swap_sides
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

Relation = Literal["shifted", "reversed", "channels", "caption", "order"]

SHIFT = 0.5
"""Seconds by which a shifted sound is off, at least (Korbar et al. 2018)."""
ONE_SIDED = 0.1
"""Power of the difference of two channels over that of both, from which on swapping them can be heard."""


class Negative(Operation):
    """One relation of a sample broken; the entry's "relation" is the label.

    "shifted": the sound is rolled by half a second or more; "reversed": the sound runs backwards; "channels": left and right of the
    sound are exchanged; "caption": left and right in the captions; "order": before and after in the captions. Only relations that
    the sample has can be broken: a sound in the middle has no side.

    Attributes:
        relations: which of them, all equally likely among those that a sample has.
    """

    kind: Literal["negative"] = "negative"
    probability: Probability = 0.5
    relations: tuple[Relation, ...] = Setting(default=("shifted", "reversed", "channels", "caption"), min_length=1)

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Which relation, and for "shifted" by how many seconds the sound comes later."""
        seen = any(isinstance(modalities[name], VideoModality) for name in values)
        pictured = seen or any(isinstance(modalities[name], ImageModality) for name in values)
        sounds = [name for name in values if isinstance(modalities[name], AudioModality)]
        captions = [c for name, v in values.items() if isinstance(modalities[name], TextModality) for c in v]
        seconds = min((values[name].shape[1] / rate_of(Field(name, modalities[name])) for name in sounds), default=0.0)
        has = {
            "shifted": seen and seconds > 2 * SHIFT,
            "reversed": seen and seconds > 0,
            "channels": pictured and any(_one_sided(values[name]) for name in sounds),
            "caption": (pictured or bool(sounds)) and _all_swapped([swap_sides(c).outcome for c in captions]),
            "order": (seen or bool(sounds)) and _all_swapped([swap_order(c).outcome for c in captions]),
        }
        possible = [relation for relation in self.relations if has[relation]]
        if not possible:
            raise Skip("no_relation")
        relation = possible[int(rng.integers(len(possible)))]
        shift = float(rng.uniform(SHIFT, seconds - SHIFT)) if relation == "shifted" else 0.0
        return {"relation": relation, "seconds": shift}


def _one_sided(wave: np.ndarray) -> bool:
    if len(wave) != 2:
        return False
    power = float(np.square(wave, dtype=np.float64).sum())
    return power > 0 and float(np.square(wave[0] - wave[1], dtype=np.float64).sum()) / power >= ONE_SIDED


def _all_swapped(outcomes: list[str]) -> bool:
    return bool(outcomes) and all(outcome == "swapped" for outcome in outcomes)


def _break_sound(wave: np.ndarray, entry: Entry, field: Field) -> np.ndarray:
    relation = entry["relation"]
    if relation == "shifted":
        return np.roll(wave, round(entry["seconds"] * rate_of(field)), axis=1)
    if relation == "reversed":
        return wave[:, ::-1].copy()
    return wave[::-1].copy() if relation == "channels" else wave


def _break_captions(captions: Captions, entry: Entry, field: Field) -> Captions:
    swap = {"caption": swap_sides, "order": swap_order}.get(entry["relation"])
    return captions if swap is None else Captions([swap(caption).text for caption in captions], captions.weights)


_ANCHOR = identity("the picture is what sound and caption are taken away from")

register(
    "negative",
    {
        AudioModality: Kernel(_break_sound),
        TextModality: Kernel(_break_captions),
        ImageModality: _ANCHOR,
        VideoModality: _ANCHOR,
        LabelModality: identity("the class stays that of the picture"),
    },
)
