"""Views of sounds: float32 [channels, samples] arrays to int16 tensors [channels, samples] of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from mmssl.core.config import LOW_HIGH, Config
from mmssl.data.modalities.masks import TokenOrder
from mmssl.data.modality import View

Pad = Literal["repeat", "zero"]
Shape = tuple[int, int]

FULL_SCALE = 32768
"""int16 value of 1.0."""


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"got {list(values)}, wanted [smallest, largest]")
    return values


Decibels = Annotated[tuple[float, float], LOW_HIGH, AfterValidator(_rising)]


class RandomWindowConfig(Config):
    """A window at a random place; its length is the modality's `seconds`. What is set besides changes what is heard in it.

    All of it acts on both channels alike, so that where a sound comes from stays as it was; the time of events stays too, but
    for `shift`.

    Attributes:
        gain_db: range of the gain; what becomes too loud is clipped. None: as recorded.
        noise_snr_db: range of the ratio of the window's power to that of white noise, which is added; none to silence. None: no
            noise.
        noise: probability of noise, with `noise_snr_db`.
        shift: the window's content is moved by up to this share of its length, to earlier or later.
        shift_fill: "roll": what leaves at one end comes in at the other; "silence".
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
                f"noise {self.noise:g} has no effect without noise_snr_db: give its range, or leave noise out"
            )
        return self

    def build(self, shape: Shape, pad: Pad) -> RandomWindowView:
        """The view of that many channels and samples."""
        return RandomWindowView(self, shape, pad)


class SoundOrderConfig(Config):
    """A random order of the patches of a spectrogram, for objectives that mask: the first ones are kept, or the last.

    Attributes:
        tokens: how many patches the encoder has: rows over the filters times columns over time.
    """

    kind: Literal["order"] = "order"
    tokens: int = Field(ge=2)

    def build(self, shape: Shape, pad: Pad) -> TokenOrder:
        """The view; lengths of sounds do not matter to it."""
        return TokenOrder(self.tokens)


class RandomWindowView(View):
    """int16 [channels, samples]: a window at a random place, and what its config does to it.

    Parameters: start, in samples; and where its config asks for it shift, in samples, later if above 0; gain_db; noise, the
    ratio in dB and the seed of its samples, or None.

    Args:
        config: what is done.
        shape: channels and samples of the view; a sound with one channel is doubled where two are wanted.
        pad: how shorter sounds are made as long; see `fit`.
    """

    random_time = True

    def __init__(self, config: RandomWindowConfig, shape: Shape, pad: Pad) -> None:
        self.config = config
        self.shape = shape
        self.pad = pad

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """All places of the window are equally likely; shorter sounds start at 0. Gains and ratios are uniform in dB."""
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
        """The window, shifted, with noise, louder or softer, in this order."""
        wave = window(value, parameters["start"], self.shape, self.pad)
        if parameters.get("shift"):
            wave = shifted(wave, parameters["shift"], self.config.shift_fill)
        if parameters.get("noise"):
            wave = noisy(wave, *parameters["noise"])
        if "gain_db" in parameters:
            wave = wave * np.float32(10 ** (parameters["gain_db"] / 20))
        return quantise(wave, self.shape[0])

    def blank(self) -> Tensor:
        """Silence."""
        return torch.zeros(self.shape, dtype=torch.int16)


class CentreWindowView(View):
    """int16 [channels, samples]: the window in the middle, without chance."""

    def __init__(self, shape: Shape, pad: Pad) -> None:
        self.shape = shape
        self.pad = pad

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """The window."""
        return cut(value, max(0, (value.shape[1] - self.shape[1]) // 2), self.shape, self.pad)

    def blank(self) -> Tensor:
        """Silence."""
        return torch.zeros(self.shape, dtype=torch.int16)


class SpreadWindowsView(View):
    """int16 [n, channels, samples]: n windows from the beginning to the end of the sound, equally far apart, without chance.

    They overlap where the sound is shorter than n windows, and leave gaps where it is longer. Encoders take the mean of their
    features.
    """

    def __init__(self, shape: Shape, pad: Pad, windows: int) -> None:
        self.shape = shape
        self.pad = pad
        self.windows = windows

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """The windows."""
        spare = max(0, value.shape[1] - self.shape[1])
        starts = [spare * number // max(1, self.windows - 1) for number in range(self.windows)]
        return torch.stack([cut(value, start, self.shape, self.pad) for start in starts])

    def blank(self) -> Tensor:
        """Silence."""
        return torch.zeros(self.windows, *self.shape, dtype=torch.int16)


def cut(value: np.ndarray, start: int, shape: Shape, pad: Pad) -> Tensor:
    """The window at `start` as int16."""
    return quantise(window(value, start, shape, pad), shape[0])


def window(value: np.ndarray, start: int, shape: Shape, pad: Pad) -> np.ndarray:
    """The window at `start`, float32 [channels of the value, samples]."""
    return fit(value[:, start : start + shape[1]], shape[1], pad)


def quantise(wave: np.ndarray, channels: int) -> Tensor:
    """int16 [channels, samples]: rounded, and clipped to [-1, 1); one channel is doubled where two are wanted."""
    whole = np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return torch.from_numpy(np.repeat(whole, channels // len(whole), axis=0))


def shifted(wave: np.ndarray, samples: int, fill: Literal["roll", "silence"]) -> np.ndarray:
    """[channels, samples] moved along time, all channels together; later if `samples` is above 0."""
    moved = np.roll(wave, samples, axis=1)
    if fill == "silence":
        moved[:, slice(0, samples) if samples > 0 else slice(samples, None)] = 0
    return moved


def noisy(wave: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """[channels, samples] with white Gaussian noise of equal power in all channels, independent of each other."""
    power = float(np.mean(wave.astype(np.float64) ** 2)) * 10 ** (-snr_db / 10)
    noise = np.random.default_rng(seed).standard_normal(wave.shape, dtype=np.float32)
    made: np.ndarray = wave + np.float32(np.sqrt(power)) * noise
    return made


def fit(wave: np.ndarray, samples: int, pad: Pad) -> np.ndarray:
    """A sound of at most `samples` at that length: "repeat" says it as often as it fits whole; silence fills the rest."""
    length = wave.shape[1]
    times = samples // length if pad == "repeat" else 1
    return np.pad(np.tile(wave, (1, times)), ((0, 0), (0, samples - times * length)))
