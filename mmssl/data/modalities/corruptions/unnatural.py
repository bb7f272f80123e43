"""Corruptions of pictures that the web does not show: the six kinds of LAION-C (Li et al. 2025, arXiv:2506.16950), by own rules.

LAION-C's pictures are a fixed set that was made with a pool of photographs. These are made of any picture: tiles and stickers are
pieces of the picture itself. So scores cannot be compared with those of that set. All lengths are shares of a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from mmssl.data.corruption import Corruption

if TYPE_CHECKING:
    from torch import Generator, Tensor

CELLS = 8
"""Cells of a side of the checkerboard."""
NOISE = 0.3
"""Share of the bands of a glitched picture that are noise, at full strength."""


def _uniform(generator: Generator, *shape: int) -> np.ndarray:
    import torch

    drawn: np.ndarray = torch.rand(shape, generator=generator, dtype=torch.float64).numpy()
    return drawn


def _mosaic(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Tiles of a share `strength` of a side, each the whole picture, small, moved to the mean colour of what it covers."""
    from torch.nn.functional import interpolate

    flat = x.reshape(-1, *x.shape[-3:])
    height, width = x.shape[-2:]
    sides = [max(2, round(side * strength)) for side in (height, width)]
    counts = [-(-side // tile) for side, tile in zip((height, width), sides, strict=True)]
    means = interpolate(flat, size=counts, mode="area").repeat_interleave(sides[0], 2).repeat_interleave(sides[1], 3)
    small = interpolate(flat, size=sides, mode="area")
    tiles = (small - small.mean((-2, -1), keepdim=True)).repeat(1, 1, *counts)
    made: Tensor = (means + tiles)[..., :height, :width]
    return made.clamp(0, 1).reshape(x.shape)


def _glitched(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Bands of rows moved sideways by up to a share `strength` of the width, colours apart, and some bands of noise."""
    import torch

    height, width = x.shape[-2:]
    red, blue = ((_uniform(generator, 2) - 0.5) * strength * width / 2).round().astype(int).tolist()
    made = torch.stack([x[..., 0, :, :].roll(red, -1), x[..., 1, :, :], x[..., 2, :, :].roll(blue, -1)], -3)
    top = 0
    while top < height:
        tall, move, noisy = _uniform(generator, 3).tolist()
        rows = slice(top, top + max(1, round(height * (0.02 + 0.1 * tall))))
        top = rows.stop
        made[..., rows, :] = made[..., rows, :].roll(round((2 * move - 1) * strength * width), -1)
        if noisy < NOISE * strength:
            band = made[..., rows, :]
            made[..., rows, :] = torch.rand(band.shape[-3:], generator=generator).to(x.dtype)
    return made


def _vertical_lines(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Lines on black, one a strip of a share `strength` of the width: as wide as the picture is bright there, in its colour."""
    import torch

    width = x.shape[-1]
    strip = max(2, round(width * strength))
    places = torch.arange(width)
    first = places - places % strip
    last = (first + strip).clamp_max(width)
    sums = torch.nn.functional.pad(x.cumsum(-1), (1, 0))
    colours = (sums[..., last] - sums[..., first]) / (last - first)
    light = colours.amax(-3, keepdim=True)
    from_middle = (places - (first + last - 1) / 2).abs() / ((last - first) / 2)
    return colours.where(from_middle < light, 0.0)


def _geometric_shapes(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """`strength` discs, rectangles and triangles of random place, size and colour over the picture."""
    import torch

    height, width = x.shape[-2:]
    layer = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for kind, column, row, wide, tall, *colour in _uniform(generator, int(strength), 8).tolist():
        middle = (column * width, row * height)
        half = ((0.02 + 0.06 * wide) * width, (0.02 + 0.06 * tall) * height)
        left, right = middle[0] - half[0], middle[0] + half[0]
        top, bottom = middle[1] - half[1], middle[1] + half[1]
        fill = (*(int(256 * value) for value in colour), 255)
        if kind < 1 / 3:
            draw.ellipse((left, top, right, bottom), fill)
        elif kind < 2 / 3:
            draw.rectangle((left, top, right, bottom), fill)
        else:
            draw.polygon(((left, bottom), (right, bottom), (middle[0], top)), fill)
    pixels = torch.from_numpy(np.array(layer)).permute(2, 0, 1)
    return x.where(pixels[3] == 0, pixels[:3].to(x.dtype) / 255)


def _stickers(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """`strength` pieces of the picture itself, turned by half a circle, at other places of it."""
    height, width = x.shape[-2:]
    made = x.clone()
    for size, *shares in _uniform(generator, int(strength), 5).tolist():
        tall, wide = (max(1, round(side * (0.1 + 0.12 * size))) for side in (height, width))
        rooms = (height - tall + 1, width - wide + 1) * 2
        row, column, top, left = (int(share * room) for share, room in zip(shares, rooms, strict=True))
        made[..., top : top + tall, left : left + wide] = x[..., row : row + tall, column : column + wide].flip(-2, -1)
    return made


def _luminance_checkerboard(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Cells of a checkerboard are brighter by `strength` and darker by it, in turn."""
    import torch

    height, width = x.shape[-2:]
    rows, columns = (torch.arange(side) * CELLS // side for side in (height, width))
    sign = 1 - 2 * ((rows[:, None] + columns) % 2)
    return x + strength * sign


UNNATURAL: Mapping[str, Corruption] = {
    "mosaic": Corruption(_mosaic, (0.03, 0.045, 0.06, 0.08, 0.11)),
    "glitched": Corruption(_glitched, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "vertical_lines": Corruption(_vertical_lines, (0.022, 0.032, 0.045, 0.06, 0.08)),
    "geometric_shapes": Corruption(_geometric_shapes, (10, 25, 50, 90, 150)),
    "stickers": Corruption(_stickers, (5, 10, 20, 35, 60)),
    "luminance_checkerboard": Corruption(_luminance_checkerboard, (0.1, 0.2, 0.35, 0.5, 0.7)),
}
"""Corruptions of pictures, and of the frames of clips; strengths: share of a side, share of the width, share of the width, number
of shapes, number of stickers, share of full brightness."""
