"""Corruptions of arrays and of series, whose values have any units: everything is relative to the channels themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmssl.data.corruption import Corruption
from mmssl.data.modalities.corruptions.common import COMMON, EXTRA

if TYPE_CHECKING:
    from torch import Generator, Tensor

LONGEST_WAVE = 10.0
"""Seconds of the slowest wave of a baseline, below the rate of breathing; the fastest has a third of it."""


def _channel_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """White noise of a share of the standard deviation of each channel [C, ...]."""
    return x + strength * _spread(x) * x.new_empty(x.shape).normal_(generator=generator)


def _white_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """The same, at a ratio of variances of `strength` dB."""
    return _channel_noise(x, 10 ** (-strength / 20), generator)


def _channel_gain(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Each channel by `strength` dB nearer to its mean, or further from it."""
    mean = _mean(x)
    return mean + (x - mean) * 10 ** (strength / 20)


def _baseline_wander(x: Tensor, strength: float, generator: Generator, *, rate: float) -> Tensor:
    """Three slow waves, of a root mean square of `strength` standard deviations of each channel [C, samples]."""
    import torch

    seconds = torch.arange(x.shape[-1]) / rate
    waves = x.new_zeros(x.shape)
    for number in (1, 2, 3):
        phase = torch.rand((len(x), 1), generator=generator)
        waves = waves + torch.sin(2 * math.pi * (number * seconds / LONGEST_WAVE + phase))
    return x + strength * _spread(x) * waves / waves.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)


def _channel_dropout(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """A share of the channels, at least one and not all, has its mean everywhere; a larger share has those of a smaller one."""
    import torch

    lost = torch.randperm(len(x), generator=generator)[: min(max(1, round(strength * len(x))), len(x) - 1)]
    made = x.clone()
    made[lost] = _mean(x).expand_as(x)[lost]
    return made


def _time_mask(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """A span of a share of the time has the mean of each channel; a larger share has the span of a smaller one."""
    import torch

    samples = x.shape[-1]
    length = max(1, round(strength * samples))
    start = int(float(torch.rand((), generator=generator)) * (samples - length + 1))
    made = x.clone()
    made[..., start : start + length] = _mean(x)
    return made


def _mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.ndim)), keepdim=True)


def _spread(x: Tensor) -> Tensor:
    return (x - _mean(x)).square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()


SERIES: Mapping[str, Corruption] = {
    "white_noise": Corruption(_white_noise, (20, 15, 10, 5, 0)),
    "gain": Corruption(_channel_gain, (-6, -12, -18, -24, -30)),
    "baseline_wander": Corruption(_baseline_wander, (0.25, 0.5, 1, 2, 4), timed=True),
    "channel_dropout": Corruption(_channel_dropout, (0.1, 0.2, 0.35, 0.5, 0.75)),
    "time_mask": Corruption(_time_mask, (0.05, 0.1, 0.2, 0.35, 0.5)),
}
"""Corruptions of series; strengths: signal to noise in dB, dB, standard deviations, share of the channels, share of the time."""
ARRAYS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(_channel_noise, (0.1, 0.25, 0.5, 1, 2)),
    **{kind: corruption for kind, corruption in {**COMMON, **EXTRA}.items() if kind.endswith(("blur", "contrast"))},
    "elastic_transform": COMMON["elastic_transform"],
    "pixelate": COMMON["pixelate"],
    "channel_dropout": SERIES["channel_dropout"],
}
"""Corruptions of arrays: those of pictures that need no range of light; strengths of noise are standard deviations of a channel."""
