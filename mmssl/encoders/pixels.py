"""Pixel normalisation, shared by all image and video encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.config import Entries

Statistics = Annotated[tuple[float, ...], Field(min_length=1)]
"""A number for each channel of pictures with any number of channels."""
ColourValues = Annotated[tuple[float, float, float], Entries(("red", "green", "blue"))]

OPENAI_MEAN: ColourValues = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: ColourValues = (0.26862954, 0.26130258, 0.27577711)


class Pixels(nn.Module):
    """Normalise images [B, C, H, W], uint8 or float in the units of mean: (x - mean) / std, after scaling uint8 to [0, 1].

    C is the number of entries of `mean` and of `std`: 3, or that of arrays. The statistics are non-persistent buffers: they belong
    to the config, not to the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"got mean {list(mean)} and std {list(std)}, wanted one number a channel each, with every std above 0"
            )
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] uint8 or float -> [B, C, H, W] float."""
        channels = len(self.mean)
        if x.ndim != 4 or x.shape[1] != channels or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted images as uint8, or as floats in [0, 1], of shape "
                f"[B, {channels}, H, W]"
            )
        # The loader's images are channels last in memory; each encoder chooses its memory format.
        floats = x.to(self.mean.dtype, memory_format=torch.contiguous_format)
        x = floats / 255 if x.dtype == torch.uint8 else floats
        return (x - self.mean) / self.std


def as_frames(x: Tensor) -> Tensor:
    """Add a time axis to images [B, 3, H, W]: clips of one frame; clips [B, T, 3, H, W] stay as they are.

    Raises:
        ValueError: `x` has another shape, or no frame.
    """
    x = x[:, None] if x.ndim == 4 else x
    if x.ndim != 5 or x.shape[1] == 0 or x.shape[2] != 3:
        raise ValueError(
            f"got {x.dtype} {list(x.shape)}, wanted clips of shape [B, frames, 3, H, W] or images of shape [B, 3, H, W]"
        )
    return x
