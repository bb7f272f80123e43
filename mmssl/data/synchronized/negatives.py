"""Hard negatives: break one relation between the modalities of a sample, and record which.

For heads that classify whether modalities match (Korbar et al. 2018, arXiv 1807.00230; Yang et al. 2020, "Telling Left from
Right"). The picture stays unchanged; the sound or the caption changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting

from mmssl.core.config import Probability
from mmssl.data.modality import Modality
from mmssl.data.synchronized.operation import Operation, Skip, Values, measured

Relation = Literal["shifted", "reversed", "channels", "caption", "order"]

SHIFT = 0.5
"""Minimum shift in seconds of a shifted sound (Korbar et al. 2018)."""


class Negative(Operation):
    """Hard negative: break one relation of a sample; "relation" in its record is the label.

    "shifted": roll the sound by half a second or more; "reversed": reverse the sound in time; "channels": swap left and right of
    the sound; "caption": swap left and right in the captions; "order": swap before and after in the captions. Only relations of
    the sample can be broken: a sound in the middle has no side.

    Attributes:
        relations: relations to choose from, equally likely among those that a sample has.
    """

    kind: Literal["negative"] = "negative"
    probability: Probability = 0.5
    relations: tuple[Relation, ...] = Setting(default=("shifted", "reversed", "channels", "caption"), min_length=1)

    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw the relation, and for "shifted" the delay of the sound in seconds."""
        moving = any(modalities[name].moving for name in values)
        visual = any(modalities[name].visual for name in values)
        audible = any(modalities[name].audible for name in values)
        breakable = measured(self.kind, values, modalities)
        lengths = [modalities[name].length(values[name]) or 0.0 for name in breakable if modalities[name].audible]
        seconds = min(lengths, default=0.0)

        def have(relation: str) -> list[bool]:
            return [relation in breakable[name] for name in breakable if relation in modalities[name].relations]

        has = {
            "shifted": moving and seconds > 2 * SHIFT,
            "reversed": moving and seconds > 0,
            "channels": visual and any(have("channels")),
            "caption": (visual or audible) and bool(have("caption")) and all(have("caption")),
            "order": (moving or audible) and bool(have("order")) and all(have("order")),
        }
        possible = [relation for relation in self.relations if has[relation]]
        if not possible:
            raise Skip("no_relation")
        relation = possible[int(rng.integers(len(possible)))]
        shift = float(rng.uniform(SHIFT, seconds - SHIFT)) if relation == "shifted" else 0.0
        return {"relation": relation, "seconds": shift}
