"""Audio spectrogram transformer (AST, arXiv:2104.01778), with its front-end inside and masks for masked pretraining."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Entries
from mmssl.core.encoder import Encoder, Features
from mmssl.core.positions import sincos_positions
from mmssl.encoders.adapters.imagebind_names import refuse_imagebind
from mmssl.encoders.positions import TokenGrid, fit_columns, resize_positions
from mmssl.encoders.sound_config import FrontEndEncoderConfig
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weights import load_and_freeze
from mmssl.encoders.windows import encode_windows

Positive = Annotated[int, Field(gt=0)]
Size = Annotated[tuple[Positive, Positive], Entries(("filters", "frames"))]


class AudioTransformerConfig(TransformerConfig, FrontEndEncoderConfig):
    """Settings of an audio spectrogram transformer; the defaults are AST's sizes, without overlap of patches.

    Attributes:
        patch_size: mel filters and frames of a patch.
        stride: filters and frames from one patch to the next; None: the patch size, without overlap. AST: [10, 10].
        pool: "cls" takes the class token, "mean" the mean of the patch tokens.
        class_token: whether a learned class token goes first.
        registers: number of learned tokens without a place, which are not returned (Darcet et al. 2024, arXiv:2309.16588).
        layer_scale: initial factor of each residual branch (LayerScale); None: no such factor.
        positions: "learned" position embeddings, or "sincos": fixed sines and cosines, as in AudioMAE. Learned ones begin small:
            what depends on the order of sounds is learnt late.
    """

    kind: Literal["audio_transformer"] = "audio_transformer"
    patch_size: Size = (16, 16)
    stride: Size | None = None
    pool: Literal["cls", "mean"] = "cls"
    class_token: bool = True
    registers: int = Field(default=0, ge=0)
    layer_scale: float | None = None
    positions: Literal["learned", "sincos"] = "learned"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pool == "cls" and not self.class_token:
            raise ValueError("got pool: cls and class_token: false, wanted a class token to pool; use pool: mean")
        return self

    def columns(self, frames: int) -> int:
        """See the base."""
        patch, step = self.patch_size[1], (self.stride or self.patch_size)[1]
        return max(0, (frames - patch) // step + 1)

    def build(self) -> AudioTransformer:
        """Build it, load `weights` (positions resampled to this grid), freeze.

        Raises:
            ValueError: sounds of `seconds` are too short for one patch.
        """
        encoder = AudioTransformer(self)
        load_and_freeze(
            encoder,
            self,
            translate=refuse_imagebind,
            adapt=lambda state: fit_columns(state, "positional_embedding", encoder.grid, encoder.prefix),
        )
        return encoder


class AudioTransformer(Encoder):
    """Audio spectrogram transformer: waveforms [B, C, samples] -> pooled [B, D] and patch tokens [B, T, D], after the final norm.

    The grid is (rows of patches over the filters from low to high, columns over time), read row by row. Filters and frames at
    the ends that do not fill a patch are ignored.
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
            Encoder.PREPARED,
        }
    )
    grid: TokenGrid

    def __init__(self, config: AudioTransformerConfig) -> None:
        super().__init__()
        self.width, self.depth = config.width, config.depth
        self.patch_size = config.patch_size
        self.stride = config.stride or config.patch_size
        self.pool = config.pool
        self.front_end = config.front_end.build()
        samples = round(config.front_end.settings.rate * config.seconds)
        self.grid = self._grid(self.front_end.mels, self.front_end.length(samples))
        self.patch_embedding = nn.Conv2d(self.front_end.planes, self.width, self.patch_size, self.stride)
        scale = self.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(self.width)) if config.class_token else None
        self.prefix = int(config.class_token)
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.prefix + prod(self.grid), self.width))
        if config.positions == "sincos":  # the class token has no place
            fixed = F.pad(sincos_positions(self.grid, self.width), (0, 0, self.prefix, 0))
            self.positional_embedding = nn.Parameter(fixed, requires_grad=False)
        self.registers = nn.Parameter(scale * torch.randn(config.registers, self.width)) if config.registers else None
        self.blocks = config.transformer(layer_scale=config.layer_scale)
        self.norm_post = nn.LayerNorm(self.width)

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms [B, C, samples], int16 or float in [-1, 1] -> normalised spectrograms [B, planes, filters, frames]."""
        return self.front_end(x)  # type: ignore[no-any-return]

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

        Spectrograms that `prepare` made are taken, too.

        Raises:
            ValueError: `x` is not audio or too short for one patch, or `hidden` is above the depth.
        """
        self.check_hidden(hidden)
        windows = x.ndim == 4 and not self.front_end.is_spectrogram(x)
        if windows and keep is None and replace is None and not hidden:
            return encode_windows(self, x)
        x = self.front_end(x, augment=self.training)
        grid = self._grid(x.shape[2], x.shape[3])
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [B, T, D] in reading order
        embedded = x
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[..., None], value.to(x.dtype), x)
        positions = resize_positions(self.positional_embedding, self.grid, grid, self.prefix)
        x = x + positions[self.prefix :]
        if keep is not None:
            x = torch.take_along_dim(x, keep[..., None], dim=1)
        content = slice(-x.shape[1], None)  # class token and registers go first
        if self.registers is not None:
            x = torch.cat([self.registers.expand(x.shape[0], -1, -1), x], dim=1)
        if self.class_embedding is not None:
            x = torch.cat([(self.class_embedding + positions[0]).expand(x.shape[0], 1, -1), x], dim=1)
        if pooled_only and self.pool == "cls" and not hidden:
            x, _ = self.blocks(x, pick=0)
            return Features(self.norm_post(x)[:, 0])
        x, states = self.blocks(x, hidden=hidden, mlps=mlps)
        x = self.norm_post(x)
        tokens = x[:, content]
        pooled = x[:, 0] if self.pool == "cls" else tokens.mean(1)
        states = tuple(state[:, content] for state in states)
        return Features(pooled, tokens, grid if keep is None else None, states or None, embedded)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: embeddings; each block; the final norm."""
        embeddings = [
            self.class_embedding,
            self.registers,
            self.positional_embedding,
            *self.patch_embedding.parameters(),
        ]
        first = [parameter for parameter in embeddings if parameter is not None]
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm_post.parameters())]

    def _grid(self, *size: int) -> TokenGrid:
        rows, columns = (
            (extent - patch) // step + 1 for extent, patch, step in zip(size, self.patch_size, self.stride, strict=True)
        )
        if rows < 1 or columns < 1:
            raise ValueError(
                f"got spectrograms of {size[0]} filters x {size[1]} frames, wanted at least one patch of {self.patch_size}: "
                "give longer sounds or smaller patches"
            )
        return rows, columns
