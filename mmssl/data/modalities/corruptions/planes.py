"""What corruptions of pictures share: filters by a kernel, random sampling of places, and noise of several scales.

Pictures are [..., C, H, W]; what is drawn is the same for all frames and channels. Lengths are those of pictures of SIDE pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

SIDE = 224
"""Shorter side of the pictures that published lengths in pixels are for; others have them in proportion."""


def pixels_of(x: Tensor, length: float) -> float:
    """A length in pixels of a picture of SIDE, in pixels of this picture."""
    return length * min(x.shape[-2:]) / SIDE


def smoothed(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation of `sigma` pixels of this picture, cut off at four of them."""
    import torch
    from torch.nn.functional import conv2d, pad

    reach = min(round(4 * sigma), (min(x.shape[-2:]) - 1) // 2)
    if reach == 0:
        return x
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / sigma) ** 2)
    weights = (weights / weights.sum()).to(x.dtype)
    wide = pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="reflect")
    return conv2d(conv2d(wide, weights[None, None, :, None]), weights[None, None, None]).reshape(x.shape)


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution with a kernel [2R + 1, 2R + 1] around its middle, of sum 1; beyond its edges a picture is mirrored."""
    import torch
    from torch.nn.functional import pad

    reach = kernel.shape[-1] // 2
    wide = pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="reflect")
    size = [32 * math.ceil(side / 32) for side in wide.shape[-2:]]  # quick to transform
    spectrum = torch.fft.rfft2(wide, s=size) * torch.fft.rfft2(kernel.to(x.dtype), s=size)
    made: Tensor = torch.fft.irfft2(spectrum, s=size)[..., 2 * reach : wide.shape[-2], 2 * reach : wide.shape[-1]]
    return made.reshape(x.shape)


def disc(radius: float) -> Tensor:
    """Kernel of an aperture: a disc of this radius in pixels, whose edge falls over one pixel."""
    import torch

    reach = math.ceil(radius)
    places = torch.arange(-reach, reach + 1.0)
    kernel = (radius + 0.5 - torch.hypot(*torch.meshgrid(places, places, indexing="ij"))).clamp(0, 1)
    return kernel / kernel.sum()


def trail(length: float, sigma: float, degrees: float) -> Tensor:
    """Kernel of a motion: a line of `length` pixels from the middle, at an angle, whose weights fall as a Gaussian of `sigma`."""
    import torch

    reach = max(1, math.ceil(length))
    steps = torch.arange(reach + 1.0).clamp_max(length)
    weights = torch.exp(-0.5 * (steps / max(sigma, 1e-3)) ** 2)
    rows, columns = (
        steps * turn + reach for turn in (math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))
    )
    kernel = torch.zeros(2 * reach + 2, 2 * reach + 2)
    top, left = rows.floor().long(), columns.floor().long()
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - (rows - top - down).abs()) * (1 - (columns - left - right).abs())
        kernel.index_put_((top + down, left + right), weights * share, accumulate=True)
    kernel = kernel[:-1, :-1]
    return kernel / kernel.sum()


def sampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The picture at places in pixels [H, W], bilinear; beyond its edges it is mirrored."""
    import torch
    from torch.nn.functional import grid_sample

    height, width = x.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    flat = x.reshape(1, -1, height, width)
    return grid_sample(flat, grid[None].to(x.dtype), padding_mode="reflection", align_corners=False).reshape(x.shape)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the picture, `factor` times as large, at least 1; bilinear."""
    import torch

    for dim in (-2, -1):
        side = x.shape[dim]
        places = (torch.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2
        first = places.long().clamp_max(max(0, side - 2))
        share = (places - first).to(x.dtype)
        share = share[:, None] if dim == -2 else share
        x = x.index_select(dim, first).lerp(x.index_select(dim, (first + 1).clamp_max(side - 1)), share)
    return x


def plasma(shape: tuple[int, int], decay: float, generator: Generator) -> Tensor:
    """Cloudy noise [H, W] from 0 to 1: uniform noise on grids of 2, 4, 8, ... cells a side, of amplitudes that fall by `decay`."""
    import torch
    from torch.nn.functional import interpolate

    side = 2 ** math.ceil(math.log2(max(2, *shape)))
    cells, amplitude, made = 2, 1.0, torch.zeros(1, 1, side, side)
    while cells <= side:
        grid = torch.rand((1, 1, cells + 1, cells + 1), generator=generator) * 2 - 1
        made = made + amplitude * interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)
        cells, amplitude = cells * 2, amplitude / decay
    made = made[0, 0, : shape[0], : shape[1]]
    made = made - made.min()
    return made / made.max().clamp_min(1e-12)


def draw_uniform(generator: Generator, low: float, high: float) -> float:
    """A random number."""
    import torch

    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
