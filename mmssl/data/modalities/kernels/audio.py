"""Synchronized augmentation kernels for sounds, float32 [channels, samples] at the rate of their modality."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Margin, Operand, window_of
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.kernels.image import reverse_axis

WINDOW_SECONDS = 0.032
"""Length of the STFT windows in which sounds are panned."""
ONE_SIDED = 0.1
"""Minimum power of the channels' difference over that of both, for a swap of channels to be audible."""


def _rate(field: Operand) -> int:
    rate: int = field.modality.rate
    return rate


def fit_sound(wave: np.ndarray, samples: int) -> np.ndarray:
    """The first `samples` of a sound [C, N], with silence after its end."""
    part = wave[:, :samples]
    return part if part.shape[1] == samples else np.pad(part, ((0, 0), (0, samples - part.shape[1])))


def _window_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    start, length = window_of(entry, field.name)
    first = round(start * _rate(field))
    return wave[:, first : first + round(length * _rate(field))]


def _speed_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    from torchaudio.functional import resample

    factor = Fraction(entry["factor"])
    made = resample(to_tensor(np.ascontiguousarray(wave)), factor.numerator, factor.denominator).numpy()
    return np.ascontiguousarray(made[:, : max(1, int(wave.shape[1] / factor))])


def _pan_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    left, _, width, _ = entry["box"]
    if len(wave) != 2 or entry["pan"] == "ignore":
        return wave
    if entry["pan"] == "mono":
        return np.repeat(wave.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)
    return remap_pan(wave, left, width, _rate(field))


def remap_pan(wave: np.ndarray, left: float, width: float, rate: int) -> np.ndarray:
    """Pan stereo sound with a crop: a source at fraction u of the old picture moves to (u - left) / width, in each STFT bin.

    Constant-power panning: a source at u has the gains cos(u pi / 2) and sin(u pi / 2). Sources outside the new picture are panned
    to its edge. Rotating both channels by the difference of the angles keeps power and phase, and keeps diffuse sound (as from
    two distant microphones) diffuse.

    Args:
        wave: float32 [2, N]. left: left edge of the new picture, as a fraction of the old one. width: its width, as a
            fraction.
        rate: sample rate in Hz.
    """
    import torch  # slow to import, and only needed here

    size = 1 << max(5, round(math.log2(WINDOW_SECONDS * rate)))
    sound = torch.from_numpy(np.ascontiguousarray(wave))
    window = torch.hann_window(size)
    spectra = torch.stft(sound, size, size // 4, window=window, pad_mode="constant", return_complex=True)  # [2, F, T]
    angle = torch.atan2(spectra[1].abs(), spectra[0].abs())
    panned = ((angle * (2 / math.pi) - left) / width).clamp(0, 1) * (math.pi / 2) - angle
    cosine, sine = panned.cos(), panned.sin()
    # Channels in opposite phase are rotated the other way, as their angle is mirrored.
    sine = torch.where((spectra[0] * spectra[1].conj()).real < 0, -sine, sine)
    made = torch.stack([cosine * spectra[0] - sine * spectra[1], sine * spectra[0] + cosine * spectra[1]])
    wide = torch.istft(made, size, size // 4, window=window, length=wave.shape[1])
    out: np.ndarray = wide.numpy()
    return out


def _scale(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return wave * np.float32(10 ** (entry["decibels"] / 20))


def _mix_sounds(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    other = fit_sound(field.partner, wave.shape[1])
    if len(other) != len(wave):
        wave, other = (np.repeat(x, 2 // len(x), axis=0) for x in (wave, other))
    weight = entry["weight"]
    level, others = (math.sqrt(float(np.mean(np.square(x, dtype=np.float64)))) for x in (wave, other))
    audible = min(level, others, weight, 1 - weight) > 0  # silence has no level to match
    share = 1 / (1 + level / others * (1 - weight) / weight) if audible else weight
    mixed = (share * wave + (1 - share) * other) / math.hypot(share, 1 - share)
    out: np.ndarray = (mixed / max(1.0, float(np.abs(mixed).max(initial=0)))).astype(np.float32)
    return out


def _samples(entry: Entry, field: Operand) -> int:
    samples: int = round(entry["length"] * _rate(field))
    return samples


def _reverse_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return fit_sound(wave, _samples(entry, field))[:, ::-1].copy()


def _roll_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return np.roll(fit_sound(wave, _samples(entry, field)), -round(entry["start"] * _rate(field)), axis=1)


def _mask_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    rate = _rate(field)
    made = wave.copy()
    for start, stop in entry["spans"].get(field.name, []):
        made[:, round(start * rate) : round(stop * rate)] = 0
    return made


def _breakable(wave: np.ndarray) -> frozenset[str]:
    one_sided = _difference(wave) >= ONE_SIDED
    return frozenset({"shifted", "reversed", "channels"} if one_sided else {"shifted", "reversed"})


def _difference(wave: np.ndarray) -> float:
    """Power of the channels' difference, as a share of that of both; 0 for silence and for mono sounds."""
    power = float(np.square(wave, dtype=np.float64).sum())
    if len(wave) != 2 or power == 0:
        return 0.0
    return float(np.square(wave[0] - wave[1], dtype=np.float64).sum()) / power


def _margins(wave: np.ndarray) -> dict[str, Margin]:
    what = "the power of the difference of the channels, as a share of that of both,"
    return {"channels": Margin(what, _difference(wave), ONE_SIDED)}


def _break_sound(wave: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    relation = entry["relation"]
    if relation == "shifted":
        return np.roll(wave, round(entry["seconds"] * _rate(field)), axis=1)
    if relation == "reversed":
        return wave[:, ::-1].copy()
    return wave[::-1].copy() if relation == "channels" else wave


def _peak(wave: np.ndarray) -> float:
    return float(np.abs(wave).max(initial=0))


SOUNDS = {
    "time_crop": Kernel(_window_sound),
    "speed": Kernel(_speed_sound),
    "reverse": Kernel(_reverse_sound),
    "roll": Kernel(_roll_sound),
    "time_mask": Kernel(_mask_sound),
    "flip": Kernel(lambda wave, entry, field: reverse_axis(wave, 0)),
    "crop": Kernel(_pan_sound),
    "mixup": Kernel(_mix_sounds),
    "gain": Kernel(_scale, measure=_peak),
    "negative": Kernel(_break_sound, measure=_breakable, margins=_margins),
}
