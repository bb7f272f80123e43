"""Views of sounds: float32 [channels, samples] arrays to int16 tensors [channels, samples] of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.core.config import Config
from mmssl.data.modality import View

Pad = Literal["repeat", "zero"]
Shape = tuple[int, int]

FULL_SCALE = 32768
"""int16 value of 1.0."""


class RandomWindowView(View):
    """int16 [channels, samples]: a window at a random place. Parameters: start, in samples.

    Args:
        shape: channels and samples of the view; a sound with one channel is doubled where two are wanted.
        pad: how shorter sounds are made as long; see `fit`.
    """

    def __init__(self, shape: Shape, pad: Pad) -> None:
        self.shape = shape
        self.pad = pad

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Where the window starts; all places are equally likely. Shorter sounds start at 0."""
        return {"start": int(rng.integers(max(1, value.shape[1] - self.shape[1] + 1)))}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """The window."""
        return cut(value, parameters["start"], self.shape, self.pad)

    def blank(self) -> Tensor:
        """Silence."""
        return torch.zeros(self.shape, dtype=torch.int16)


class RandomWindowConfig(Config):
    """A window at a random place; its length is the modality's `seconds`."""

    kind: Literal["random_window"] = "random_window"

    def build(self, shape: Shape, pad: Pad) -> RandomWindowView:
        """The view of that many channels and samples."""
        return RandomWindowView(shape, pad)


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


def cut(value: np.ndarray, start: int, shape: Shape, pad: Pad) -> Tensor:
    """The window at `start` as int16: rounded, and clipped to [-1, 1)."""
    window = fit(value[:, start : start + shape[1]], shape[1], pad)
    whole = np.clip(np.rint(window * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return torch.from_numpy(np.repeat(whole, shape[0] // len(whole), axis=0))


def fit(wave: np.ndarray, samples: int, pad: Pad) -> np.ndarray:
    """A sound of at most `samples` at that length: "repeat" says it as often as it fits whole; silence fills the rest."""
    length = wave.shape[1]
    times = samples // length if pad == "repeat" else 1
    return np.pad(np.tile(wave, (1, times)), ((0, 0), (0, samples - times * length)))
