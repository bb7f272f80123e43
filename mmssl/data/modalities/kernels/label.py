"""Synchronized kernels of class labels: most operations leave them; mixtures choose the heavier label, or all of both."""

from __future__ import annotations

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Operand, identity


def _heavier(label: int, entry: Entry, field: Operand) -> int:
    return label if entry["weight"] >= 0.5 else int(field.partner)


def _either(labels: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return np.asarray(np.maximum(labels, field.partner))


_TIMELESS = identity("a class holds for the whole sample")
LABELS = {
    "time_crop": _TIMELESS,
    "speed": _TIMELESS,
    "reverse": _TIMELESS,
    "roll": _TIMELESS,
    "time_mask": _TIMELESS,
    "flip": identity("a class has no side"),
    "crop": identity("a class has no place"),
    "mixup": Kernel(_heavier),
    "gain": identity("only sounds have a level"),
    "dropout": identity("a label is a target, not an input"),
    "negative": identity("the class stays that of the picture"),
}
MULTI_LABELS = {**LABELS, "mixup": Kernel(_either)}
