"""Weather before pictures, as ImageNet-C has it: snow, frost, fog and spatter, of textures that are drawn, not photographed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmssl.data.corruption import Corruption
from mmssl.data.modalities.corruptions.planes import draw_uniform, filtered, pixels_of, plasma, smoothed, trail, zoomed

if TYPE_CHECKING:
    from torch import Generator, Tensor

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
ICE, WATER, MUD = (0.85, 0.94, 1.0), (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
Seven = tuple[float, float, float, float, float, float, float]


def _fog(x: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """Light through clouds of some thickness and decay, in the range of the picture."""
    thickness, decay = strength
    largest = x.max()
    return (x + thickness * plasma(_shape(x), decay, generator)) * largest / (largest + thickness)


def _snow(x: Tensor, strength: Seven, generator: Generator) -> Tensor:
    """Flakes that fall, in two layers, before a picture that loses its colours to white."""
    import torch

    mean, spread, size, threshold, radius, sigma, kept = strength
    noise = mean + spread * torch.empty(_shape(x)).normal_(generator=generator)
    flakes = zoomed(noise[None], max(1.0, pixels_of(x, size)))
    flakes = flakes.where(flakes >= threshold, 0.0).clamp(0, 1)
    falling = trail(2 * pixels_of(x, radius), pixels_of(x, sigma), draw_uniform(generator, -135, -45))
    flakes = filtered(flakes, falling)
    grey = (x * x.new_tensor(GREY)[:, None, None]).sum(-3, keepdim=True)
    return kept * x + (1 - kept) * x.maximum(1.5 * grey + 0.5) + flakes + flakes.flip(-2, -1)


def _frost(x: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """The picture under a texture of ice."""
    kept, share = strength
    ice = x.new_tensor(ICE)[:, None, None] * ice_texture(_shape(x), generator)
    return kept * x + share * ice


def ice_texture(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Brightness of ice on a pane, [H, W] from 0 to 1: a cover in patches, veins, and needles in three directions at 60 degrees."""
    import torch

    patches = plasma(shape, 2.0, generator)
    veins = 1 - (2 * plasma(shape, 1.6, generator) - 1).abs()  # ridges where the noise passes its middle
    seeds = torch.rand(shape, generator=generator)[None]
    seeds = (seeds > 0.97).float() * (0.5 + 0.5 * plasma(shape, 1.3, generator))
    first = draw_uniform(generator, 0, 60)
    length = pixels_of(seeds, 24)
    needles = sum(filtered(seeds, trail(length, length / 2, first + turn)) for turn in (0, 60, 120))
    assert isinstance(needles, torch.Tensor)
    needles = needles[0] / needles.max().clamp_min(1e-12)
    return (0.15 + 0.45 * patches + 0.25 * veins**6 + 0.6 * needles.clamp_min(0)).clamp(0, 1)


def _spatter(x: Tensor, strength: tuple[float, float, float, float, float, bool], generator: Generator) -> Tensor:
    """Drops of water, or of mud, where smooth noise exceeds a threshold."""
    import torch

    mean, spread, sigma, threshold, edge, muddy = strength
    noise = mean + spread * torch.empty(_shape(x)).normal_(generator=generator)
    wet = (smoothed(noise[None], pixels_of(x, sigma)) > threshold).float()
    if muddy:
        cover = smoothed(wet, pixels_of(x, edge))
        cover = cover.where(cover >= 0.8, 0.0)
        return x * (1 - cover) + x.new_tensor(MUD)[:, None, None] * cover
    return x + edge * smoothed(wet, pixels_of(x, 1)) * x.new_tensor(WATER)[:, None, None]


def _shape(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


WEATHER: Mapping[str, Corruption] = {
    "snow": Corruption(
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Corruption(_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
}
"""Strengths: mean and spread of the noise, size and threshold of flakes, radius and standard deviation of their fall, share of the
picture that keeps its colours; shares of picture and ice; thickness and decay of clouds."""
SPATTER = Corruption(
    _spatter,
    (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
)
"""Strengths: mean, spread and smoothness of the noise, threshold, opacity of water or smoothness of mud, and whether it is mud."""
