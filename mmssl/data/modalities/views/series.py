"""Views of series (windows and augmentation): float32 [C, samples] to float32 tensors [C, samples] of a fixed length, in its units.

Augmentation is relative to each channel of the window, its mean and standard deviation, so that it needs no normalised series.
Shorter series are padded at their end with the mean of each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config, Probability
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

SeriesShape = tuple[int, int]
Sigma = Field(default=0.0, ge=0, le=1)
KNOTS = 6
"""Points of a random smooth curve: four within the window and its two ends, as in the code of Um et al."""
SLOWEST = 0.1
"""Least speed of warped time, as a share of the usual one: time never stands or runs back."""


class RandomSeriesConfig(Config):
    """Random crop in time, of the modality's `seconds`, with optional augmentation of the window (0: none).

    The augmentations of Um et al. 2017 (arXiv:1706.00527, section 3; the survey of Iwana and Uchida, arXiv:2007.15951, has the
    usual sizes), about the mean of each channel. Time is warped for all channels alike, so that they stay aligned.

    Attributes:
        scaling: standard deviation of a factor about 1, one for each channel. Um et al.: 0.1.
        magnitude_warp: standard deviation of a smooth curve of factors about 1, one for each channel. Um et al.: 0.2.
        time_warp: standard deviation of a smooth curve of speeds about 1, for all channels. Um et al.: 0.2.
        jitter: standard deviation of added white noise, in units of the channel's. Um et al.: 0.05.
        channel_dropout: probability that a channel becomes constant, its mean; one channel always stays (leads of an ECG:
            Oh et al. 2022, random lead masking, arXiv:2203.06889).
    """

    kind: Literal["random_window"] = "random_window"
    scaling: float = Sigma
    magnitude_warp: float = Sigma
    time_warp: float = Sigma
    jitter: float = Sigma
    channel_dropout: Probability = 0.0

    def build(self, shape: SeriesShape) -> RandomSeries:
        """Build the view of [C, samples]."""
        return RandomSeries(self, shape)


class RandomSeries(View):
    """Random crop in time with augmentation: float32 [C, samples].

    Parameters: start, in samples; and if configured: time (speeds at the knots), magnitude (factors at the knots, for each
    channel), scaling (a factor for each channel), jitter (a seed), dropped (numbers of channels).
    """

    random_time = True

    def __init__(self, config: RandomSeriesConfig, shape: SeriesShape) -> None:
        self.config = config
        self.shape = shape

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the start uniformly (0 for shorter series), and normal factors about 1."""
        c, channels = self.config, self.shape[0]
        drawn: dict[str, Any] = {"start": int(rng.integers(max(1, value.shape[1] - self.shape[1] + 1)))}
        if c.time_warp:
            drawn["time"] = rng.normal(1, c.time_warp, KNOTS).tolist()
        if c.magnitude_warp:
            drawn["magnitude"] = rng.normal(1, c.magnitude_warp, (channels, KNOTS)).tolist()
        if c.scaling:
            drawn["scaling"] = rng.normal(1, c.scaling, channels).tolist()
        if c.jitter:
            drawn["jitter"] = int(rng.integers(2**31))
        if c.channel_dropout:
            dropped = rng.random(channels) < c.channel_dropout
            dropped[rng.integers(channels)] = False
            drawn["dropped"] = np.flatnonzero(dropped).tolist()
        return drawn

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop, then change the window: time, size, noise, channels."""
        x = fit_series(value, self.shape[1], parameters["start"])
        x = warp_time(x, parameters["time"]) if "time" in parameters else x
        mean = x.mean(axis=1, keepdims=True, dtype=np.float64)
        factor = np.ones((len(x), 1))
        if "magnitude" in parameters:
            factor = factor * np.stack([smooth_curve(heights, x.shape[1]) for heights in parameters["magnitude"]])
        if "scaling" in parameters:
            factor = factor * np.array(parameters["scaling"])[:, None]
        x = mean + factor * (x - mean)
        if "jitter" in parameters:
            noise = np.random.default_rng(parameters["jitter"]).standard_normal(x.shape)
            x = x + self.config.jitter * x.std(axis=1, keepdims=True) * noise
        for channel in parameters.get("dropped", []):
            x[channel] = mean[channel]
        return to_tensor(x.astype(np.float32))

    def blank(self) -> Tensor:
        """Zeros."""
        return to_tensor(np.zeros(self.shape, np.float32))


class CentreSeries(View):
    """Centre crop in time, deterministic: float32 [C, samples]."""

    def __init__(self, shape: SeriesShape) -> None:
        self.shape = shape

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        """Crop the window in the middle."""
        start = max(0, (value.shape[1] - self.shape[1]) // 2)
        return to_tensor(fit_series(value, self.shape[1], start).copy())

    def lasting(self, share: float) -> CentreSeries:
        """The view of more or fewer samples, at least one."""
        return CentreSeries((self.shape[0], max(1, round(self.shape[1] * share))))

    def blank(self) -> Tensor:
        """Zeros."""
        return to_tensor(np.zeros(self.shape, np.float32))


def fit_series(value: np.ndarray, samples: int, start: int = 0) -> np.ndarray:
    """Crop samples start ... start + samples - 1 of [C, N]; after the end of the series, the mean of each channel."""
    part = value[:, start : start + samples]
    if part.shape[1] == samples:
        return part
    mean = part.mean(axis=1, keepdims=True, dtype=np.float64).astype(value.dtype)
    return np.concatenate([part, np.repeat(mean, samples - part.shape[1], axis=1)], axis=1)


def smooth_curve(heights: list[float], samples: int) -> np.ndarray:
    """Cubic spline through points at equal distances from the first to the last sample, float64 [samples]."""
    from scipy.interpolate import CubicSpline  # slow to import, and only needed here

    curve: np.ndarray = CubicSpline(np.linspace(0, max(1, samples - 1), len(heights)), heights)(np.arange(samples))
    return curve


def warp_time(x: np.ndarray, speeds: list[float]) -> np.ndarray:
    """Play [C, N] at a smoothly changing speed from its first to its last sample (linear interpolation), float64 [C, N]."""
    passed = np.cumsum(np.maximum(smooth_curve(speeds, x.shape[1]), SLOWEST))
    places = (passed - passed[0]) * ((x.shape[1] - 1) / max(passed[-1] - passed[0], SLOWEST))
    return interpolated(x, places)


def interpolated(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of [C, N] at fractional places [M], float64 [C, M]."""
    return np.stack([np.interp(places, np.arange(x.shape[1]), channel) for channel in x])
