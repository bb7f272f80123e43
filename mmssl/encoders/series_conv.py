"""Dilated convolutional network of series: the encoder of TS2Vec (arXiv:2106.10466, section 2.2), without positions."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, EncoderConfig, Features
from mmssl.core.input_spec import InputSpec
from mmssl.encoders.adapters.adapter import refuse_masks
from mmssl.encoders.pixels import Statistics
from mmssl.encoders.weights import load_and_freeze


class SeriesConvConfig(EncoderConfig):
    """Settings of a dilated convolutional network of series; the defaults are TS2Vec's.

    Attributes:
        channels: channels of the series.
        rate: samples a second, in Hz.
        seconds: usual length of the series; any other works too.
        stride: samples of a token; the input projection joins them.
        hidden: channels inside the blocks.
        depth: number of blocks; block i has kernels of three tokens, 2^i apart. One more, of `width` channels, follows.
        width: D, channels of the last block.
        dropout: dropout probability of the tokens.
        mean, std: statistics of each channel in the units of the series, or one number for all channels.
    """

    kind: Literal["series_conv"] = "series_conv"
    channels: int = Field(ge=1)
    rate: float = Field(gt=0)
    seconds: float = Field(gt=0)
    stride: int = Field(default=1, ge=1)
    hidden: int = Field(default=64, gt=0)
    depth: int = Field(default=10, ge=1, le=16)
    width: int = Field(default=320, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    mean: Statistics = (0.0,)
    std: Statistics = (1.0,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.channels):
                raise ValueError(
                    f"{name}: got {len(numbers)} numbers, wanted one, or one for each of {self.channels} channels"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std: got {list(self.std)}, wanted numbers above 0")
        if round(self.rate * self.seconds) < self.stride:
            raise ValueError(
                f"got {round(self.rate * self.seconds)} samples, wanted at least {self.stride}, the stride"
            )
        return self

    def wants(self) -> InputSpec:
        """Rate and channels."""
        return InputSpec(rate=self.rate, channels=self.channels)

    def build(self) -> SeriesConv:
        """Build it, load `weights`, freeze."""
        encoder = SeriesConv(self)
        load_and_freeze(encoder, self)
        return encoder


class DilatedBlock(nn.Module):
    """Residual block: GELU and a dilated convolution, twice; the shortcut is a convolution of one token where widths differ."""

    def __init__(self, incoming: int, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(incoming, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.shortcut = nn.Conv1d(incoming, width, 1) if incoming != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, D, T]."""
        made: Tensor = self.shortcut(x) + self.conv2(F.gelu(self.conv1(F.gelu(x))))
        return made


class SeriesConv(Encoder):
    """Dilated convolutional network: series [B, C, samples] -> tokens [B, T, D] over time, and their maximum over time, [B, D].

    Samples after the last whole token are ignored.
    """

    capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE})
    grid: tuple[int]
    mean: Tensor
    std: Tensor

    def __init__(self, config: SeriesConvConfig) -> None:
        super().__init__()
        self.width, self.channels = config.width, config.channels
        self.grid = (round(config.rate * config.seconds) // config.stride,)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None], persistent=False)
        self.projection = nn.Conv1d(config.channels, config.hidden, config.stride, config.stride)
        sizes = [config.hidden] * config.depth + [config.width]
        self.blocks = nn.ModuleList(
            DilatedBlock(sizes[max(0, number - 1)], size, 2**number) for number, size in enumerate(sizes)
        )
        self.dropout = nn.Dropout(config.dropout)

    def prepare(self, x: Tensor) -> Tensor:
        """Series [B, C, samples] in their units -> normalised.

        Raises:
            ValueError: another shape, or no floats.
        """
        if x.ndim != 3 or x.shape[1] != self.channels or not x.is_floating_point():
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted series as floats of shape [B, {self.channels}, samples]"
            )
        return (x.to(self.mean.dtype) - self.mean) / self.std

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`. Tokens are replaced after the input projection.

        Raises:
            ValueError: `keep` or hidden layers are asked for, or `x` is not series of the channels.
        """
        refuse_masks(self, keep, None)
        self.check_hidden(hidden)
        x = self.projection(self.prepare(x))
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[:, None], value.to(x.dtype)[..., None] if value.ndim else value.to(x.dtype), x)
        for block in self.blocks:
            x = block(x)
        x = self.dropout(x)
        return Features(x.amax(2), x.transpose(1, 2), (x.shape[2],))

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: the input projection; each block."""
        return [list(self.projection.parameters()), *(list(block.parameters()) for block in self.blocks)]
