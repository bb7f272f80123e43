"""Synchronized augmentation kernels for series, float32 [C, samples] at the rate of their modality."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Operand, identity, window_of
from mmssl.data.modalities.kernels.image import reverse_axis
from mmssl.data.modalities.views.series import fit_series, interpolated


def _at(seconds: float, field: Operand) -> int:
    samples: int = round(seconds * field.modality.rate)
    return samples


def _window(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    start, length = window_of(entry, field.name)
    first = _at(start, field)
    return value[:, first : first + _at(length, field)]


def _speed(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    factor = float(Fraction(entry["factor"]))
    samples = max(1, int(value.shape[1] / factor))
    return interpolated(value, np.arange(samples) * factor).astype(np.float32)


def _reverse(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return reverse_axis(fit_series(value, _at(entry["length"], field)), 1)


def _roll(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return np.roll(fit_series(value, _at(entry["length"], field)), -_at(entry["start"], field), axis=1)


def _mask(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    """Hidden spans become the mean of each channel."""
    made = value.copy()
    for start, stop in entry["spans"].get(field.name, []):
        made[:, _at(start, field) : _at(stop, field)] = value.mean(axis=1, keepdims=True, dtype=np.float64)
    return made


def _mix(value: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    """Convex combination; the partner is cropped or padded to the length of the series."""
    weight = np.float32(entry["weight"])
    mixed: np.ndarray = weight * value + (1 - weight) * fit_series(field.partner, value.shape[1])
    return mixed


SERIES = {
    "time_crop": Kernel(_window),
    "speed": Kernel(_speed),
    "reverse": Kernel(_reverse),
    "roll": Kernel(_roll),
    "time_mask": Kernel(_mask),
    "mixup": Kernel(_mix),
    "flip": identity("the channels of a series have no sides"),
    "crop": identity("a series has no place"),
    "gain": identity("only sounds have a level"),
    "negative": identity("negatives change the sound or the caption, and keep the series"),
}
