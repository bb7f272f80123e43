"""Layer norms: what they add to the variance, those of a residual stream in bfloat16, and those over the channels of series."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Residual = Literal["float32", "bf16"]

USUAL_EPS = 1e-5
"""What is added to the variance: torch's default, and CLIP's."""


def set_epsilon(module: nn.Module, eps: float) -> None:
    """Set what every LayerNorm of a module adds to the variance."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps


class StreamNorm(nn.LayerNorm):
    """A LayerNorm that gives bfloat16 for bfloat16, also under autocast, which would cast its input to float32.

    Mean and variance are float32 inside; weight and bias are rounded to bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.dtype != torch.bfloat16:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def block_norm(width: int, residual: Residual) -> nn.LayerNorm:
    """The norm at the start of a branch of a block."""
    return StreamNorm(width) if residual == "bf16" else nn.LayerNorm(width)


def as_stream(x: Tensor, residual: Residual) -> Tensor:
    """The tokens that enter the first block: bfloat16 if the residual stream is, where autocast computes in bfloat16."""
    device = x.device.type
    if (
        residual == "float32"
        or not torch.is_autocast_enabled(device)
        or torch.get_autocast_dtype(device) != torch.bfloat16
    ):
        return x
    return x.to(torch.bfloat16)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, D, T], at each time alone."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)
