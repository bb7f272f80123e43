"""Noise that a denoising objective adds to raw views: a pure function of seed and sample, equal on any number of processes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.config import Config
from mmssl.objectives.parts.presence import mixed_bits


@torch.no_grad()
def uniform_noise(index: Tensor, seed: int, values: int) -> Tensor:
    """Uniform numbers between 0 and 1, neither of which is one, [B, values] float32 of 23 bits: a pure function of (seed, sample).

    Args:
        index: [B] int64, numbers of the samples.
        seed: of the step.
        values: numbers of a sample.
    """
    places = torch.arange(values, device=index.device)
    bits = mixed_bits(mixed_bits(index + seed % 2**62)[:, None] + places)
    return bits.bitwise_and_(2**23 - 1).float().add_(0.5).div_(2**23)  # of 24 bits the largest would be rounded to 1


def normal_noise(index: Tensor, seed: int, shape: torch.Size) -> Tensor:
    """Standard normal numbers [B, *shape] float32; see `uniform_noise`."""
    uniform = uniform_noise(index, seed, math.prod(shape))
    return uniform.mul_(2).sub_(1).erfinv_().mul_(2**0.5).view(-1, *shape)


class Noise(Config, ABC):
    """Base of noises."""

    @abstractmethod
    def add(self, x: Tensor, index: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """Change floating-point raw views.

        Args:
            x: [B, ...] float; pixels are between 0 and 1, sounds between -1 and 1.
            index: [B] int64, numbers of the samples.
            seed: of the step.

        Returns:
            The changed views, and the standard normal noise in them; None if it is of another kind.
        """


class GaussianNoise(Noise):
    """Normal noise: x + deviation * n (Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3).

    Attributes:
        deviation: standard deviation, in the units of the view. Pixels are between 0 and 1, sounds between -1 and 1.
    """

    kind: Literal["gaussian"] = "gaussian"
    deviation: float = Field(default=0.25, gt=0)

    def add(self, x: Tensor, index: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        noise = normal_noise(index, seed, x.shape[1:]).to(x)
        return x + self.deviation * noise, noise


class ZeroNoise(Noise):
    """Masking noise: a share of the values is 0 (Vincent et al. 2010, section 3.3). Colours of a pixel are values of their own.

    Attributes:
        share: probability of a value to become 0.
    """

    kind: Literal["zeros"] = "zeros"
    share: float = Field(default=0.25, gt=0, lt=1)

    def add(self, x: Tensor, index: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        uniform = uniform_noise(index, seed, math.prod(x.shape[1:])).view_as(x)
        return x.masked_fill(uniform < self.share, 0.0), None


class DiffusionNoise(Noise):
    """Noise of a level that is drawn for each sample: sqrt(a_t) x + sqrt(1 - a_t) n, of values scaled about 0.

    Ho et al. 2020 (arXiv:2006.11239), equation 4; cosine schedule: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 17. The
    encoder is not told the level, which a view shows.

    Attributes:
        levels: T; t is one of 1 to T, equally likely.
        schedule: of a_t: "linear" betas from 1e-4 to 0.02, or "cosine".
        centre, scale: x is (view - centre) / scale. As they are for pixels between 0 and 1; sounds have centre 0.
    """

    kind: Literal["diffusion"] = "diffusion"
    levels: int = Field(default=1000, ge=2)
    schedule: Literal["linear", "cosine"] = "linear"
    centre: float = 0.5
    scale: float = Field(default=0.5, gt=0)

    def add(self, x: Tensor, index: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        drawn = uniform_noise(index, seed, 1 + math.prod(x.shape[1:]))
        level = (drawn[:, 0].double() * self.levels).long().clamp(max=self.levels - 1)
        kept = kept_shares(self.schedule, self.levels).to(x.device)[level].to(x).view(-1, *[1] * (x.ndim - 1))
        noise = (torch.erfinv(2 * drawn[:, 1:] - 1) * 2**0.5).view_as(x).to(x)
        changed = kept.sqrt() * (x - self.centre) / self.scale + (1 - kept).sqrt() * noise
        return changed * self.scale + self.centre, noise


@cache
def kept_shares(schedule: Literal["linear", "cosine"], levels: int) -> Tensor:
    """a_1 ... a_T: share of the variance that is the view's, [T] float64; see `DiffusionNoise`."""
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64)
    else:
        share = ((torch.arange(levels + 1, dtype=torch.float64) / levels + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1 - share[1:] / share[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)


NoiseConfig = Annotated[GaussianNoise | ZeroNoise | DiffusionNoise, Field(discriminator="kind")]
