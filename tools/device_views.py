"""Views of SimCLR made on the training device from pictures that lie there: for data sets that fit into its memory.

The laws are those of the view kind `simclr` (Chen et al. 2020, arXiv:2002.05709, appendix A), drawn for each picture, with one
difference: brightness, contrast, saturation and hue change in this order, there in a random one. Used by `reproduce_cifar10.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.sample import Drawn
from mmssl.core.seeding import fold
from mmssl.data.modalities.views.batch_colours import turn_hue

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class SimClrLaw:
    """Probabilities and strengths of the view.

    Attributes:
        scale: area of the crop, as a share of the picture. ratio: its width over its height, drawn evenly in the logarithm.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x. hue: turn of the colour circle, from -x to x.
        jitter, grayscale, flip: probabilities.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grayscale: float = 0.2
    flip: float = 0.5

    def __call__(self, pictures: Tensor, random: torch.Generator) -> Tensor:
        """Uint8 [B, 3, H, W] -> uint8 [B, 3, H, W], with draws from a generator on the same device."""
        x = self.crop(pictures.float() / 255, random)
        x = torch.where(self._happens(x, self.jitter, random), self.colours(x, random), x)
        grey = luminance(x).expand_as(x)
        x = torch.where(self._happens(x, self.grayscale, random), grey, x)
        return (x * 255).round().clamp(0, 255).to(torch.uint8)

    def crop(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Random resized crop and flip, bilinear with the pixel grid of `align_corners=False`."""
        count, sides = len(x), x.new_tensor([x.shape[3], x.shape[2]])  # width, height
        area = _uniform(x, count, *self.scale, random) * sides.prod()
        ratio = _uniform(x, count, *(math.log(r) for r in self.ratio), random).exp()
        size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).minimum(sides)
        start = torch.rand(count, 2, generator=random, device=x.device) * (sides - size)
        mirror = torch.rand(count, generator=random, device=x.device) < self.flip
        scale, shift = size / sides, (2 * start + size) / sides - 1
        theta = torch.zeros(count, 2, 3, device=x.device)
        theta[:, 0, 0] = torch.where(mirror, -scale[:, 0], scale[:, 0])
        theta[:, 1, 1], theta[:, :, 2] = scale[:, 1], shift
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def colours(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Colour jitter of each picture."""
        bright, contrast, saturation = (
            _uniform(x, len(x), 1 - s, 1 + s, random).view(-1, 1, 1, 1)
            for s in (self.brightness, self.contrast, self.saturation)
        )
        x = (x * bright).clamp(0, 1)
        mean = luminance(x).mean((1, 2, 3), keepdim=True)
        x = (mean + contrast * (x - mean)).clamp(0, 1)
        grey = luminance(x)
        x = (grey + saturation * (x - grey)).clamp(0, 1)
        return turn_hue(x, _uniform(x, len(x), -self.hue, self.hue, random))

    @staticmethod
    def _happens(x: Tensor, probability: float, random: torch.Generator) -> Tensor:
        return (torch.rand(len(x), generator=random, device=x.device) < probability).view(-1, 1, 1, 1)


def luminance(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W] by ITU-R 601."""
    return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _uniform(like: Tensor, count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random, device=like.device)


class DeviceViews:
    """Training stream over pictures on the device: whole epochs without their incomplete last batch, resumable at any step.

    Args:
        pictures: uint8 [N, 3, H, W] on the device.
        batch_size: of the batches.
        seed: of order and views, which are pure functions of (seed, step).
        views: kind -> (number of views, law).
    """

    def __init__(
        self, pictures: Tensor, batch_size: int, seed: int, views: Mapping[str, tuple[int, SimClrLaw]]
    ) -> None:
        self.pictures, self.batch_size, self.seed, self.views = pictures, batch_size, seed, dict(views)
        self.steps_per_epoch = len(pictures) // batch_size
        self.epoch_samples = self.steps_per_epoch * batch_size
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            step, self.step = self.step, self.step + 1
            yield self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(
            len(self.pictures), generator=torch.Generator().manual_seed(fold(self.seed, "order", epoch))
        )
        index = order[place * self.batch_size : (place + 1) * self.batch_size].to(self.pictures.device)
        random = torch.Generator(self.pictures.device).manual_seed(fold(self.seed, "views", step))
        some = self.pictures[index]
        views = {
            f"{kind}{number}": law(some, random) for kind, (count, law) in self.views.items() for number in range(count)
        }
        return Batch({"image": views}, index)

    def state_dict(self) -> dict[str, Any]:
        """The number of batches handed out."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a position."""
        self.step = int(state["step"])

    def drawn(self) -> Mapping[str, Drawn]:
        """Nothing is drawn from sources."""
        return {}

    def close(self) -> None:
        """There are no workers."""
