"""Predictors of features at places of a grid, from encoded tokens at others: transformer (JEPA), convolutions (data2vec 2.0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.positions import sincos_positions
from mmssl.heads.decoders import DecoderBlock, DecoderSize

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""By the number of axes of the grid, from one on."""
Normal = Callable[[torch.Size], Tensor]
"""Shape -> standard normal numbers [B, *shape], drawn for each of B rows apart."""


class TransformerPredictor(nn.Module):
    """Predictor of JEPA: predicts features at given places of a grid from encoded tokens at others (arXiv:2301.08243, section 3).

    A learned mask token with its position stands for each place. Places of one target are predicted together, and targets apart.

    Args:
        encoder_width: D.
        grid: shape of the token grid; T is its product.
        width: width of the predictor.
        depth: number of blocks.
        heads: attention heads, a divisor of the width.
    """

    positions: Tensor

    def __init__(self, encoder_width: int, grid: Sequence[int], width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = math.prod(grid)
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.register_buffer("positions", sincos_positions(grid, width))
        self.blocks = nn.Sequential(*[DecoderBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, encoder_width)

    def forward(self, tokens: Tensor, context: Tensor, places: Tensor, normal: Normal) -> Tensor:
        """Predict features.

        Args:
            tokens: [B, C, D] encoded tokens.
            context: [B, C] int64, their places.
            places: [B, M, n] int64, the places of M targets.
            normal: not used.

        Returns:
            [B, M, n, D].
        """
        B, M, n = places.shape
        seen = self.embed(tokens) + self.positions[context]
        seen = seen[:, None].expand(-1, M, -1, -1).flatten(0, 1)  # [B * M, C, width]
        asked = (self.mask_token + self.positions[places]).flatten(0, 1).to(seen.dtype)
        x = self.blocks(torch.cat([seen, asked], 1))[:, -n:]
        found: Tensor = self.predict(self.norm(x))
        return found.view(B, M, n, -1)


class TransformerPredictorConfig(DecoderSize):
    """Settings of a light transformer with mask tokens; see `TransformerPredictor`."""

    kind: Literal["transformer"] = "transformer"

    def build(self, encoder_width: int, grid: Sequence[int]) -> TransformerPredictor:
        """Build it for tokens [B, C, encoder_width] of this grid."""
        return TransformerPredictor(encoder_width, grid, self.width, self.depth, self.heads)


class ConvPredictor(nn.Module):
    """Predictor of data2vec 2.0 (Baevski et al. 2022, arXiv:2212.07525, section 3.3) and EAT: convolutions on the whole grid.

    Encoded tokens stand at their places, and normal noise at all others: each row of tokens has its own. Each layer is a
    grouped convolution, LayerNorm without scale and shift, and GELU; a residual branch where sizes allow it. A linear layer makes
    the features.

    Args:
        encoder_width: D.
        grid: shape of the token grid, of one to three axes; T is its product.
        width: channels of the layers.
        depth: number of layers.
        kernel: side of the kernels, odd.
        groups: of each convolution, a divisor of D and of the width.
        deviation: standard deviation of the noise.

    Raises:
        ValueError: the groups do not divide D.
    """

    def __init__(
        self,
        encoder_width: int,
        grid: Sequence[int],
        width: int,
        depth: int,
        kernel: int,
        groups: int,
        deviation: float,
    ) -> None:
        super().__init__()
        if encoder_width % groups:
            raise ValueError(f"predictor.groups: got {groups}, wanted a divisor of the encoder's width {encoder_width}")
        self.tokens, self.grid, self.deviation = math.prod(grid), tuple(grid), deviation
        convolution = CONVOLUTIONS[len(self.grid) - 1]
        sizes = [encoder_width, *[width] * (depth - 1)]
        self.layers = nn.ModuleList(
            convolution(size, width, kernel, padding=kernel // 2, groups=groups) for size in sizes
        )
        self.predict = nn.Linear(width, encoder_width)

    def forward(self, tokens: Tensor, context: Tensor, places: Tensor, normal: Normal) -> Tensor:
        """Predict features; see `TransformerPredictor.forward`.

        Args:
            tokens: [B, C, D] encoded tokens.
            context: [B, C] int64, their places.
            places: [B, M, n] int64, the places of M targets.
            normal: draws the noise, on the device of the tokens.

        Returns:
            [B, M, n, D].
        """
        B, M, n = places.shape
        D = tokens.shape[2]
        holes = (self.deviation * normal(torch.Size((self.tokens, D)))).to(tokens.dtype)
        x = holes.scatter(1, context[..., None].expand(-1, -1, D), tokens).mT.reshape(B, D, *self.grid)
        for layer in self.layers:
            y = layer(x).movedim(1, -1)  # channels last
            y = F.gelu(F.layer_norm(y, y.shape[-1:])).movedim(-1, 1)
            x = x + y if x.shape[1] == y.shape[1] else y
        x = x.flatten(2).mT
        x = x.gather(
            1, places.flatten(1)[..., None].expand(-1, -1, x.shape[2])
        )  # the last layer is for each token alone
        found: Tensor = self.predict(x)
        return found.view(B, M, n, -1)


class ConvPredictorConfig(Config):
    """Settings of convolutions on the whole grid; the defaults are those of data2vec 2.0 for pictures, and of EAT.

    Attributes:
        width: channels of the layers, a multiple of groups.
        depth: number of layers.
        kernel: side of the kernels in tokens, odd.
        groups: of each convolution; divides the encoder's width too.
        deviation: standard deviation of the noise at hidden tokens.
    """

    kind: Literal["conv"] = "conv"
    width: int = Field(default=768, gt=0)
    depth: int = Field(default=6, ge=1)
    kernel: int = Field(default=3, ge=1)
    groups: int = Field(default=16, ge=1)
    deviation: float = Field(default=0.01, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> ConvPredictorConfig:
        if self.width % self.groups:
            raise ValueError(f"width: got {self.width}, wanted a multiple of groups {self.groups}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: got {self.kernel}, wanted an odd number")
        return self

    def build(self, encoder_width: int, grid: Sequence[int]) -> ConvPredictor:
        """Build it for tokens [B, C, encoder_width] of this grid.

        Raises:
            ValueError: the groups do not divide the encoder's width.
        """
        size = (self.width, self.depth, self.kernel, self.groups, self.deviation)
        return ConvPredictor(encoder_width, grid, *size)


def _kind(value: Any) -> str:
    """The kind of a predictor, as a mapping or built; a transformer where it is not said."""
    kind = value.get("kind", "transformer") if isinstance(value, dict) else getattr(value, "kind", "transformer")
    return str(kind)


PlacesPredictor = TransformerPredictor | ConvPredictor
PlacesPredictorConfig = Annotated[
    Annotated[TransformerPredictorConfig, Tag("transformer")] | Annotated[ConvPredictorConfig, Tag("conv")],
    Discriminator(_kind),
]
