"""Transformer of waveforms, without a spectrogram: convolutions over samples, then blocks (wav2vec 2.0)."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.core.input_spec import InputSpec
from mmssl.encoders.adapters.adapter import refuse_masks
from mmssl.encoders.norms import ChannelNorm
from mmssl.encoders.spectrogram import FULL_SCALE
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weights import load_and_freeze
from mmssl.encoders.windows import encode_windows


class WaveformTransformerConfig(TransformerConfig):
    """Settings of a transformer of waveforms; the defaults are wav2vec 2.0's base size, with a token every 20 ms.

    Attributes:
        rate: sampling rate of the sounds in Hz.
        seconds: usual length of the sounds; others work too.
        channels: of each convolution over samples.
        kernels: samples of each convolution.
        strides: samples from one step of each convolution to the next.
        norm: of the convolutions: "group": each channel over time, after the first alone (wav2vec 2.0 base); "layer": each time
            over its channels, after all of them (large).
        position_kernel: tokens of the convolution that gives positions.
        position_groups: its groups; a divisor of the width.
        stem_gradient: factor of the gradient that reaches the convolutions over samples. wav2vec 2.0: 0.1 (base), 1 (large).
    """

    kind: Literal["waveform_transformer"] = "waveform_transformer"
    rate: int = Field(default=16_000, gt=0)
    seconds: float = Field(gt=0)
    channels: int = Field(default=512, gt=0)
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    norm: Literal["group", "layer"] = "group"
    position_kernel: int = Field(default=128, ge=2)
    position_groups: int = Field(default=16, ge=1)
    stem_gradient: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.kernels or len(self.kernels) != len(self.strides) or min(*self.kernels, *self.strides) < 1:
            raise ValueError(
                f"got kernels {list(self.kernels)} and strides {list(self.strides)}, wanted as many of each, at least 1"
            )
        if self.width % self.position_groups:
            raise ValueError(f"position_groups: got {self.position_groups}, wanted a divisor of width {self.width}")
        return self

    def wants(self) -> InputSpec:
        """The rate."""
        return InputSpec(rate=self.rate)

    def build(self) -> WaveformTransformer:
        """Build it, load `weights`, freeze.

        Raises:
            ValueError: sounds of `seconds` are too short for one token.
        """
        encoder = WaveformTransformer(self)
        load_and_freeze(encoder, self)
        return encoder


class WaveformTransformer(Encoder):
    """Transformer of waveforms: [B, C, samples] -> pooled [B, D], the mean of tokens [B, T, D] over time, after the final norm.

    Baevski et al. 2020 (wav2vec 2.0, arXiv:2006.11477), section 2. Blocks are pre-norm, as in its large model. Positions come from
    a convolution, without weight normalisation. Channels are averaged; each sound is normalised over time.
    """

    capabilities = frozenset(
        {Encoder.TOKENS, Encoder.MASK_REPLACE, Encoder.HIDDEN, Encoder.MLPS, Encoder.BIDIRECTIONAL, Encoder.EMBEDDED}
    )
    grid: tuple[int]

    def __init__(self, config: WaveformTransformerConfig) -> None:
        super().__init__()
        self.width, self.depth = config.width, config.depth
        self.stem_gradient = config.stem_gradient
        self.stem = nn.Sequential()
        incoming, length = 1, round(config.rate * config.seconds)
        for number, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
            convolution = nn.Conv1d(incoming, config.channels, kernel, stride, bias=config.norm == "layer")
            nn.init.kaiming_normal_(convolution.weight)
            self.stem.append(convolution)
            if config.norm == "layer":
                self.stem.append(ChannelNorm(config.channels))
            elif number == 0:
                self.stem.append(nn.GroupNorm(config.channels, config.channels))
            self.stem.append(nn.GELU())
            incoming, length = config.channels, (length - kernel) // stride + 1
        if length < 1:
            raise ValueError(
                f"got sounds of {config.seconds:g} s at {config.rate} Hz, too short for one token: give longer sounds, or smaller "
                "kernels and strides"
            )
        self.grid = (length,)
        self.norm_pre = nn.LayerNorm(config.channels)
        self.project = nn.Linear(config.channels, self.width)
        kernel = config.position_kernel
        self.positions = nn.Conv1d(self.width, self.width, kernel, padding=kernel // 2, groups=config.position_groups)
        nn.init.normal_(self.positions.weight, std=2 * (kernel * self.width) ** -0.5)
        nn.init.zeros_(self.positions.bias)  # type: ignore[arg-type]
        self.blocks = config.transformer()
        self.norm_post = nn.LayerNorm(self.width)

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms [B, C, samples], int16 or float -> [B, 1, samples], of mean 0 and variance 1 over time.

        Raises:
            ValueError: another shape or type.
        """
        if x.ndim != 3 or not (x.dtype == torch.int16 or x.is_floating_point()):
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted sounds as int16, or as floats in [-1, 1], of shape [B, channels, samples]"
            )
        scale = FULL_SCALE if x.dtype == torch.int16 else 1
        sound = (x.to(self.norm_pre.weight.dtype) / scale).mean(1, keepdim=True)
        return F.layer_norm(sound, sound.shape[-1:], eps=1e-7)

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
        """See `Encoder.forward`. Several windows of a sound [B, n, C, samples] give the mean of their pooled features, no tokens.

        Tokens cannot be dropped (`keep`): their positions come from their neighbours.

        Raises:
            ValueError: `keep` is given, `x` is not audio, or `hidden` is above the depth.
        """
        self.check_hidden(hidden)
        refuse_masks(self, keep, None)
        if x.ndim == 4 and replace is None and not hidden:
            return encode_windows(self, x)
        heard = self.stem(self.prepare(x)).transpose(1, 2)  # [B, T, channels]
        if self.stem_gradient < 1:  # the same values, of a smaller gradient
            heard = heard.detach() + self.stem_gradient * (heard - heard.detach())
        x = embedded = self.project(self.norm_pre(heard))
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[..., None], value.to(x.dtype), x)
        around = self.positions(x.transpose(1, 2))[..., : x.shape[1]]  # an even kernel gives one more
        x, states = self.blocks(x + F.gelu(around).transpose(1, 2), hidden=hidden, mlps=mlps)
        x = self.norm_post(x)
        return Features(x.mean(1), x, (x.shape[1],), states or None, embedded)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: convolutions, projection and positions; each block; the final norm."""
        first = [p for part in (self.stem, self.norm_pre, self.project, self.positions) for p in part.parameters()]
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm_post.parameters())]
