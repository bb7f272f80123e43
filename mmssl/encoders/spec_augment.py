"""SpecAugment (Park et al. 2019, arXiv:1904.08779): random masks over filters and over frames of a spectrogram, in training.

Encoders apply it to their input in training, on the device. It draws from torch's generator, which the trainer seeds for each step
and replays for cached gradients.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.config import Config


class SpecAugmentConfig(Config):
    """Settings of SpecAugment; the defaults are the paper's policy LD without time warping (which matters least, it says).

    Attributes:
        filter_masks: number of frequency masks.
        filter_width: largest height of a frequency mask, in filters (F of the paper); heights from 0 are equally likely.
        time_masks: number of time masks.
        time_width: largest length of a time mask, in frames (T of the paper); lengths from 0 are equally likely.
        time_share: largest length of a time mask as a share of the frames (p of the paper).
    """

    filter_masks: int = Field(default=2, ge=0)
    filter_width: int = Field(default=27, ge=1)
    time_masks: int = Field(default=2, ge=0)
    time_width: int = Field(default=100, ge=1)
    time_share: float = Field(default=1.0, gt=0, le=1)


def spec_augment(x: Tensor, config: SpecAugmentConfig) -> Tensor:
    """Mask random bands of filters and of frames of each sample, equal in all of its planes.

    Args:
        x: spectrograms [B, planes, F, T].
        config: number and widths of masks.

    Returns:
        [B, planes, F, T], where masked values are the sample's mean.
    """
    batch, _, filters, frames = x.shape
    longest = min(config.time_width, int(config.time_share * frames))
    rows = draw_bands(batch, filters, config.filter_masks, min(config.filter_width, filters), x.device)
    columns = draw_bands(batch, frames, config.time_masks, longest, x.device)
    # The paper masks with 0, the mean of its normalised spectrograms. Not all front-ends normalise.
    hidden = rows[:, None, :, None] | columns[:, None, None, :]
    return torch.where(hidden, x.mean((1, 2, 3), keepdim=True), x)


def draw_bands(batch: int, size: int, count: int, widest: int, device: torch.device) -> Tensor:
    """Draw masks [batch, size] bool, True within `count` bands of 0 to `widest` places; bands may overlap."""
    chance = torch.rand(2, batch, count, 1, device=device)
    width = (chance[0] * (widest + 1)).long()
    start = (chance[1] * (size - width + 1)).long()
    place = torch.arange(size, device=device)
    return ((place >= start) & (place < start + width)).any(1)
