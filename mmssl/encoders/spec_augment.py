"""SpecAugment (Park et al. 2019, arXiv:1904.08779): bands of filters and stretches of frames are hidden in training.

Encoders apply it to their input in training, on the device; it draws from torch's random stream, which the trainer seeds for each
step and replays for cached gradients.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.config import Config


class SpecAugmentConfig(Config):
    """What is hidden; the defaults are the paper's policy LD, without its time warping (the part that it found to matter least).

    Attributes:
        filter_masks: how many bands of filters.
        filter_width: F of the paper: each is 0 to so many filters high, all heights equally likely.
        time_masks: how many stretches of frames.
        time_width: T of the paper: each is 0 to so many frames long.
        time_share: p of the paper: no stretch is longer than this share of the frames.
    """

    filter_masks: int = Field(default=2, ge=0)
    filter_width: int = Field(default=27, ge=1)
    time_masks: int = Field(default=2, ge=0)
    time_width: int = Field(default=100, ge=1)
    time_share: float = Field(default=1.0, gt=0, le=1)


def spec_augment(x: Tensor, config: SpecAugmentConfig) -> Tensor:
    """Mask bands of filters and stretches of frames by a draw for each sample, in all of its planes alike.

    Args:
        x: spectrograms [B, planes, F, T].
        config: how many masks, and how wide.

    Returns:
        [B, planes, F, T]; what is hidden is the sample's mean.
    """
    batch, _, filters, frames = x.shape
    longest = min(config.time_width, int(config.time_share * frames))
    rows = bands(batch, filters, config.filter_masks, min(config.filter_width, filters), x.device)
    columns = bands(batch, frames, config.time_masks, longest, x.device)
    # The paper hides with 0, the mean of its normalised spectrograms. Not all front-ends normalise.
    hidden = rows[:, None, :, None] | columns[:, None, None, :]
    return torch.where(hidden, x.mean((1, 2, 3), keepdim=True), x)


def bands(batch: int, size: int, count: int, widest: int, device: torch.device) -> Tensor:
    """[batch, size] bool, True within `count` bands of 0 to `widest` places; they may overlap."""
    chance = torch.rand(2, batch, count, 1, device=device)
    width = (chance[0] * (widest + 1)).long()
    start = (chance[1] * (size - width + 1)).long()
    place = torch.arange(size, device=device)
    return ((place >= start) & (place < start + width)).any(1)
