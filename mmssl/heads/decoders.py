"""Light transformer on encoded visible tokens that predicts all tokens: MAE's decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.positions import sincos_positions


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then an MLP with hidden size 4 * width. [B, T, width] -> [B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        B, T, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(seen.transpose(1, 2).reshape(B, T, width))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class MaskedTokenDecoder(nn.Module):
    """MAE decoder: predicts every token of a grid from the encoded visible ones (arXiv:2111.06377, section 3).

    The pooled features go first, without a position, as the class token in the paper: so the whole encoder, its pooling
    included, takes part in the loss.

    Args:
        encoder_width: D of the encoder.
        grid: shape of the token grid; T is its product.
        values: P, numbers to predict for each token.
        width: width of the decoder.
        depth: number of blocks.
        heads: attention heads, a divisor of the width.
    """

    positions: Tensor

    def __init__(
        self, encoder_width: int, grid: Sequence[int], values: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens, self.values = math.prod(grid), values
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.register_buffer("positions", sincos_positions(grid, width))
        self.blocks = nn.Sequential(*[DecoderBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, values)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, pooled: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """Predict all tokens, visible ones included.

        Args:
            pooled: [B, D] pooled features of the encoder.
            tokens: [B, T_keep, D] encoded tokens.
            keep: [B, T_keep] int64, their positions in the grid.

        Returns:
            [B, T, P].
        """
        seen = self.embed(tokens)
        at = keep[..., None].expand(-1, -1, seen.shape[-1])
        masked = self.mask_token.to(seen.dtype).expand(len(seen), self.tokens, -1)
        full = masked.scatter(1, at, seen) + self.positions
        first = self.embed(pooled)[:, None].to(full.dtype)
        x = self.blocks(torch.cat([first, full], 1))[:, 1:]
        return self.predict(self.norm(x))  # type: ignore[no-any-return]


class DecoderSize(Config):
    """Size of a light transformer; the defaults are those of MAE's decoder for a ViT-L encoder.

    Attributes:
        width: size of the tokens, a multiple of heads.
        depth: number of blocks.
        heads: attention heads.
    """

    width: int = Field(default=512, gt=0)
    depth: int = Field(default=8, ge=1)
    heads: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: got {self.width}, wanted a multiple of heads {self.heads}")
        return self


class MaskedTokenDecoderConfig(DecoderSize):
    """Settings of the MAE decoder; the defaults are the paper's for a ViT-L encoder."""

    def build(self, encoder_width: int, grid: Sequence[int], values: int) -> MaskedTokenDecoder:
        """Build the decoder from tokens [B, T_keep, encoder_width] to [B, T, values]."""
        return MaskedTokenDecoder(encoder_width, grid, values, self.width, self.depth, self.heads)
