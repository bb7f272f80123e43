"""Synchronized augmentation kernels for arrays [H, W, C] of any type: those of pictures, but mixing keeps type and range."""

from __future__ import annotations

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Operand
from mmssl.data.modalities.kernels.image import PICTURES
from mmssl.data.modalities.views.array import resize_floats


def _mix_arrays(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    """Convex combination; the partner is resized to the value, and integers are rounded."""
    height, width, _ = value.shape
    whole = [0, 0, *field.partner.shape[:2]]
    other = resize_floats(field.partner, whole, (height, width), "bilinear").numpy().transpose(1, 2, 0)
    weight = np.float32(entry["weight"])
    mixed = weight * value.astype(np.float32) + (1 - weight) * other
    made: np.ndarray = (mixed if value.dtype.kind == "f" else np.rint(mixed)).astype(value.dtype)
    return made


ARRAYS = {**PICTURES, "mixup": Kernel(_mix_arrays)}
