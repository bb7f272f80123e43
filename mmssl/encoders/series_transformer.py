"""Transformer of series (ECG, sensors): a one-dimensional convolutional stem, then blocks, with masks for masked pretraining.

The stem is that of ViT-C (Xiao et al. 2021, arXiv:2106.14881, section 3) with one axis; the blocks are those of our ViT.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.core.input_spec import InputSpec
from mmssl.encoders.norms import ChannelNorm
from mmssl.encoders.pixels import Statistics
from mmssl.encoders.positions import fit_columns, resize_positions
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weights import load_and_freeze

Stride = Annotated[int, Field(ge=1)]


class SeriesTransformerConfig(TransformerConfig):
    """Settings of a transformer of series.

    Attributes:
        channels: channels of the series.
        rate: samples a second, in Hz.
        seconds: usual length of the series; other lengths work too: position embeddings are resampled.
        strides: stride of each convolution of the stem; their product is the number of samples from one token to the next.
        overlap: whether neighbouring tokens share samples: kernels of 2 stride - 1. False: kernels as long as the stride, so that
            each token sees its own samples alone. Masked objectives need that: otherwise visible tokens see hidden samples.
        pool: "cls" takes the class token, "mean" the mean of the tokens.
        class_token: whether a learned class token goes first.
        layer_scale: initial factor of each residual branch (LayerScale); None: no such factor.
        mean, std: statistics of each channel in the units of the series, or one number for all channels.
    """

    kind: Literal["series_transformer"] = "series_transformer"
    channels: int = Field(ge=1)
    rate: float = Field(gt=0)
    seconds: float = Field(gt=0)
    strides: tuple[Stride, ...] = Field(default=(5, 2, 2), min_length=1)
    overlap: bool = True
    pool: Literal["cls", "mean"] = "cls"
    class_token: bool = True
    layer_scale: float | None = None
    mean: Statistics = (0.0,)
    std: Statistics = (1.0,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pool == "cls" and not self.class_token:
            raise ValueError("got pool: cls and class_token: false, wanted a class token to pool; use pool: mean")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.channels):
                raise ValueError(
                    f"{name}: got {len(numbers)} numbers, wanted one, or one for each of {self.channels} channels"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std: got {list(self.std)}, wanted numbers above 0")
        return self

    def wants(self) -> InputSpec:
        """Rate and channels."""
        return InputSpec(rate=self.rate, channels=self.channels)

    def build(self) -> SeriesTransformer:
        """Build it, load `weights` (positions resampled to this length), freeze.

        Raises:
            ValueError: series of `seconds` are too short for one token.
        """
        encoder = SeriesTransformer(self)
        load_and_freeze(
            encoder,
            self,
            adapt=lambda state: fit_columns(state, "positional_embedding", (1, *encoder.grid), encoder.prefix),
        )
        return encoder


class SeriesTransformer(Encoder):
    """Transformer of series: [B, C, samples] -> pooled [B, D] and tokens [B, T, D] over time, both after the final norm.

    T is samples / product of the strides, rounded up with overlap, and down without. Every parameter gets a gradient from `pooled`.
    """

    capabilities = frozenset(
        {
            Encoder.TOKENS,
            Encoder.MASK_DROP,
            Encoder.MASK_REPLACE,
            Encoder.HIDDEN,
            Encoder.MLPS,
            Encoder.BIDIRECTIONAL,
            Encoder.EMBEDDED,
        }
    )
    grid: tuple[int]
    mean: Tensor
    std: Tensor

    def __init__(self, config: SeriesTransformerConfig) -> None:
        super().__init__()
        self.width, self.depth, self.pool = config.width, config.depth, config.pool
        self.channels, self.stride = config.channels, prod(config.strides)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None], persistent=False)
        self.stem = nn.Sequential()
        incoming = config.channels
        for number, stride in enumerate(config.strides):
            size = 2 * stride - 1 if config.overlap else stride
            self.stem.append(nn.Conv1d(incoming, self.width, size, stride, padding=(size - stride)))
            if number < len(config.strides) - 1:
                self.stem.extend([ChannelNorm(self.width), nn.GELU()])
            incoming = self.width
        samples = round(config.rate * config.seconds)
        tokens = -(-samples // self.stride) if config.overlap else samples // self.stride
        if tokens < 1:
            raise ValueError(
                f"got series of {samples} samples, wanted at least {self.stride}, the product of the strides"
            )
        self.grid = (tokens,)
        scale = self.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(self.width)) if config.class_token else None
        self.prefix = int(config.class_token)
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.prefix + tokens, self.width))
        self.blocks = config.transformer(layer_scale=config.layer_scale)
        self.norm_post = nn.LayerNorm(self.width)

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
        mlps: bool = False,
    ) -> Features:
        """See `Encoder.forward`.

        Raises:
            ValueError: `x` is not series of the channels, or `hidden` is above the depth.
        """
        self.check_hidden(hidden)
        x = self.stem(self.prepare(x)).transpose(1, 2)  # [B, T, D]
        grid = (x.shape[1],)
        embedded = x
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[..., None], value.to(x.dtype), x)
        positions = resize_positions(self.positional_embedding, (1, *self.grid), (1, *grid), self.prefix)
        x = x + positions[self.prefix :]
        if keep is not None:
            x = torch.take_along_dim(x, keep[..., None], dim=1)
        if self.class_embedding is not None:
            x = torch.cat([(self.class_embedding + positions[0]).expand(x.shape[0], 1, -1), x], dim=1)
        if pooled_only and self.pool == "cls" and not hidden:
            x, _ = self.blocks(x, pick=0)
            return Features(self.norm_post(x)[:, 0])
        x, states = self.blocks(x, hidden=hidden, mlps=mlps)
        x = self.norm_post(x)
        tokens = x[:, self.prefix :]
        pooled = x[:, 0] if self.pool == "cls" else tokens.mean(1)
        states = tuple(state[:, self.prefix :] for state in states)
        return Features(pooled, tokens, grid if keep is None else None, states or None, embedded)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: stem and embeddings; each block; the final norm."""
        embeddings = [self.class_embedding, self.positional_embedding, *self.stem.parameters()]
        first = [parameter for parameter in embeddings if parameter is not None]
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm_post.parameters())]
