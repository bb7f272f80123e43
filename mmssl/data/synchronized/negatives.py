"""Negatives with a label: one relation between the modalities of a sample broken on purpose, and the record says which.

For heads that learn to tell what belongs together (Korbar et al. 2018, arXiv 1807.00230; Yang et al. 2020, "Telling Left from
Right"). The picture stays; the sound or the caption leaves it.
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
"""Seconds by which a shifted sound is off, at least (Korbar et al. 2018)."""


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
