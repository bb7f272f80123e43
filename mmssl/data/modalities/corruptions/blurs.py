"""Blurred pictures, as ImageNet-C has them: out of focus, behind frosted glass, moved, zoomed; and bent (`elastic_transform`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmssl.data.corruption import Corruption
from mmssl.data.modalities.corruptions.planes import (
    disc,
    draw_uniform,
    filtered,
    pixels_of,
    sampled,
    smoothed,
    trail,
    zoomed,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor


def _gaussian_blur(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return smoothed(x, pixels_of(x, strength))


def _defocus_blur(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return filtered(x, disc(pixels_of(x, strength)))


def _glass_blur(x: Tensor, strength: tuple[float, float, int], generator: Generator) -> Tensor:
    """Blur, pixels that take the colour of a random one within a distance, a number of times, and blur again."""
    import torch

    sigma, distance, times = strength
    height, width = x.shape[-2:]
    reach = pixels_of(x, distance) + 0.5
    made = smoothed(x, pixels_of(x, sigma))
    for _ in range(times):
        drawn = (2 * torch.rand((2, height, width), generator=generator) - 1) * reach
        rows, columns = drawn.round().long()
        rows = (rows + torch.arange(height)[:, None]).clamp(0, height - 1)
        columns = (columns + torch.arange(width)).clamp(0, width - 1)
        made = made.flatten(-2)[..., (rows * width + columns).flatten()].reshape(x.shape)
    return smoothed(made, pixels_of(x, sigma))


def _motion_blur(x: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    radius, sigma = (pixels_of(x, length) for length in strength)
    return filtered(x, trail(2 * radius, sigma, draw_uniform(generator, -45, 45)))


def _zoom_blur(x: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """The mean of the picture and of zooms from 1 to a factor."""
    largest, step = strength
    factors = [1 + step * number for number in range(round((largest - 1) / step) + 1)]
    made = 2 * x  # itself, and with the factor 1
    for factor in factors[1:]:
        made = made + zoomed(x, factor)
    return made / (len(factors) + 1)


def _elastic_transform(x: Tensor, strength: tuple[float, float, float], generator: Generator) -> Tensor:
    """Places moved by smooth noise, and by the affine map that moves three of the corners of a square at random."""
    import torch

    height, width = x.shape[-2:]
    size, sigma, corner = (pixels_of(x, length) for length in strength)
    middle, third = torch.tensor([height // 2, width // 2]), min(height, width) // 3
    corners = middle + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = corners + corner * (2 * torch.rand((3, 2), generator=generator) - 1)
    noise = 2 * torch.rand((2, height, width), generator=generator) - 1
    ones = torch.ones(3, 1)
    back = torch.linalg.solve(torch.cat([moved, ones], 1).double(), torch.cat([corners, ones], 1).double())[:, :2]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).double()
    rows, columns = (places @ back[:2] + back[2]).float().unbind(-1)
    shift = size * _spread(noise, sigma)
    return sampled(x, rows + shift[0], columns + shift[1])


def _spread(noise: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of any standard deviation in pixels of noise [..., H, W] that repeats beyond its edges."""
    import torch

    height, width = noise.shape[-2:]
    frequencies = torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()
    passed = torch.exp(-2 * (torch.pi * sigma) ** 2 * frequencies)
    made: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * passed, s=(height, width))
    return made


GAUSSIAN_BLUR = Corruption(_gaussian_blur, (1, 2, 3, 4, 6))
BLURS: Mapping[str, Corruption] = {
    "defocus_blur": Corruption(_defocus_blur, (3, 4, 6, 8, 10)),
    "glass_blur": Corruption(_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption(_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption(_zoom_blur, ((1.1, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03))),
}
"""Strengths: radius of the aperture; standard deviation, distance, times; radius and standard deviation; largest factor, step."""
ELASTIC = Corruption(
    _elastic_transform,
    ((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
)
"""Strengths: factor and standard deviation of the noise, and distance of the corners, in pixels. The first two severities move
the picture as a whole, the others bend it."""
