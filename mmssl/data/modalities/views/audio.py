"""Audio views (crops and augmentation): float32 arrays [channels, samples] to int16 tensors [channels, samples] of fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mmssl.core.config import LOW_HIGH, Config
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

Pad = Literal["repeat", "zero"]
SoundShape = tuple[int, int]

FULL_SCALE = 32768
"""int16 value of 1.0."""


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"got {list(values)}, wanted [smallest, largest]")
    return values


Decibels = Annotated[tuple[float, float], LOW_HIGH, AfterValidator(_rising)]


class RandomWindowConfig(Config):
    """Random crop in time, of the modality's `seconds`, with optional gain, noise and shift.

    All changes act on both channels alike, so that the direction of a sound stays the same. So does the time of events, except
    for `shift`.

    Attributes:
        gain_db: range of the gain in dB; samples that become too loud are clipped. None: no gain.
        noise_snr_db: range of the signal-to-noise ratio in dB of added white noise; silence gets none. None: no noise.
        noise: probability of noise, with `noise_snr_db`.
        shift: maximum time shift, as a share of the window, to earlier or later.
        shift_fill: "roll": circular shift; "silence": fill with zeros.
    """

    kind: Literal["random_window"] = "random_window"
    gain_db: Decibels | None = None
    noise_snr_db: Decibels | None = None
    noise: float = Field(default=1.0, ge=0, le=1)
    shift: float = Field(default=0.0, ge=0, le=1)
    shift_fill: Literal["roll", "silence"] = "roll"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.noise_snr_db is None and self.noise != 1:
            raise ValueError(
                f"got noise {self.noise:g} without noise_snr_db, where it has no effect: set noise_snr_db, or remove noise"
            )
        return self

    def build(self, shape: SoundShape, pad: Pad) -> RandomWindowView:
        """Build the view of [channels, samples]."""
        return RandomWindowView(self, shape, pad)


class RandomWindowView(View):
    """Random crop in time with augmentation: int16 [channels, samples].

    Parameters: start, in samples; and if configured: shift, in samples, later if positive; gain_db; noise, the ratio in dB and
    the seed, or None.

    Args:
        config: settings of the augmentation.
        shape: channels and samples of the view; a single channel is duplicated if two are wanted.
        pad: padding of shorter sounds; see `pad_to_length`.
    """

    random_time = True

    def __init__(self, config: RandomWindowConfig, shape: SoundShape, pad: Pad) -> None:
        self.config = config
        self.shape = shape
        self.pad = pad

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the start uniformly (0 for shorter sounds); gains and ratios are uniform in dB."""
        c = self.config
        drawn: dict[str, Any] = {"start": int(rng.integers(max(1, value.shape[1] - self.shape[1] + 1)))}
        if c.shift:
            reach = int(c.shift * self.shape[1])
            drawn["shift"] = int(rng.integers(-reach, reach + 1))
        if c.gain_db is not None:
            drawn["gain_db"] = float(rng.uniform(*c.gain_db))
        if c.noise_snr_db is not None:
            noise = [float(rng.uniform(*c.noise_snr_db)), int(rng.integers(2**31))]
            drawn["noise"] = noise if rng.random() < c.noise else None
        return drawn

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop, then shift, add noise and apply the gain, in this order."""
        wave = window_at(value, parameters["start"], self.shape, self.pad)
        if parameters.get("shift"):
            wave = shift_in_time(wave, parameters["shift"], self.config.shift_fill)
        if parameters.get("noise"):
            wave = add_noise(wave, *parameters["noise"])
        if "gain_db" in parameters:
            wave = wave * np.float32(10 ** (parameters["gain_db"] / 20))
        return to_tensor(quantise(wave, self.shape[0]))

    def blank(self) -> Tensor:
        """Silence."""
        return to_tensor(np.zeros(self.shape, dtype=np.int16))


class CentreWindowView(View):
    """Centre crop in time, deterministic: int16 [channels, samples]."""

    def __init__(self, shape: SoundShape, pad: Pad) -> None:
        self.shape = shape
        self.pad = pad

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop the window in the middle."""
        return to_tensor(cut_window(value, max(0, (value.shape[1] - self.shape[1]) // 2), self.shape, self.pad))

    def lasting(self, share: float) -> CentreWindowView:
        """The view of more or fewer samples, at least one."""
        return CentreWindowView((self.shape[0], max(1, round(self.shape[1] * share))), self.pad)

    def blank(self) -> Tensor:
        """Silence."""
        return to_tensor(np.zeros(self.shape, dtype=np.int16))


class SpreadWindowsView(View):
    """n evenly spaced windows from the beginning to the end of the sound, deterministic: int16 [n, channels, samples].

    They overlap if the sound is shorter than n windows, and leave gaps if it is longer. Encoders average their features.
    """

    def __init__(self, shape: SoundShape, pad: Pad, windows: int) -> None:
        self.shape = shape
        self.pad = pad
        self.windows = windows

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop the windows."""
        spare = max(0, value.shape[1] - self.shape[1])
        starts = [spare * number // max(1, self.windows - 1) for number in range(self.windows)]
        return to_tensor(np.stack([cut_window(value, start, self.shape, self.pad) for start in starts]))

    def blank(self) -> Tensor:
        """Silence."""
        return to_tensor(np.zeros((self.windows, *self.shape), dtype=np.int16))


def cut_window(value: np.ndarray, start: int, shape: SoundShape, pad: Pad) -> np.ndarray:
    """Crop the window at `start`, padded, as int16."""
    return quantise(window_at(value, start, shape, pad), shape[0])


def window_at(value: np.ndarray, start: int, shape: SoundShape, pad: Pad) -> np.ndarray:
    """Crop the window at `start`, padded, float32 [channels of the value, samples]."""
    return pad_to_length(value[:, start : start + shape[1]], shape[1], pad)


def quantise(wave: np.ndarray, channels: int) -> np.ndarray:
    """Quantise to int16 [channels, samples]: rounded, and clipped to [-1, 1); a single channel is duplicated if two are wanted."""
    whole = np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return np.repeat(whole, channels // len(whole), axis=0)


def shift_in_time(wave: np.ndarray, samples: int, fill: Literal["roll", "silence"]) -> np.ndarray:
    """Shift [channels, samples] in time, all channels together; later if `samples` is positive."""
    moved = np.roll(wave, samples, axis=1)
    if fill == "silence":
        moved[:, slice(0, samples) if samples > 0 else slice(samples, None)] = 0
    return moved


def add_noise(wave: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Add white Gaussian noise to [channels, samples], independent and of equal power in all channels."""
    power = float(np.mean(wave.astype(np.float64) ** 2)) * 10 ** (-snr_db / 10)
    noise = np.random.default_rng(seed).standard_normal(wave.shape, dtype=np.float32)
    made: np.ndarray = wave + np.float32(np.sqrt(power)) * noise
    return made


def pad_to_length(wave: np.ndarray, samples: int, pad: Pad) -> np.ndarray:
    """Pad a sound to `samples`: "repeat" adds as many whole repeats as fit; silence fills the rest."""
    length = wave.shape[1]
    times = samples // length if pad == "repeat" else 1
    return np.pad(np.tile(wave, (1, times)), ((0, 0), (0, samples - times * length)))
