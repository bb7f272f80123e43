"""Space-time video transformer on tubelets of a clip: attention over time and space in turn (divided), or over both (joint).

Divided attention is that of TimeSformer (arXiv:2102.05095) and ViViT's factorised self-attention (arXiv:2103.15691, model 3).
Its cost grows with T + S instead of T x S. Joint attention is that of ViViT's model 1 and of VideoMAE (arXiv:2203.12602).
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.checkpointing import run_block
from mmssl.encoders.norms import Residual, as_stream, block_norm
from mmssl.encoders.patches import embed_patches
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD, ColourValues, Pixels, as_frames
from mmssl.encoders.positions import TokenGrid, fit_columns, fit_positions, resize_positions
from mmssl.encoders.transformer import Attention, Block, DropPath, TransformerConfig, initialise_attention
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze


class SpaceTimeConfig(TransformerConfig):
    """Settings of a space-time video transformer; the defaults are ViT-B/16 on 16 frames in tubelets of 2.

    Attributes:
        size: usual pixels of a side of the frames; other sizes work too: position embeddings are resampled.
        frames: usual number of frames of a clip; other numbers work too: position embeddings are resampled.
        patch_size: pixels of a side of a tubelet; divides `size`.
        tubelet: frames of a tubelet; divides `frames`.
        attention: "divided" (over time, then over space) or "joint".
        mean, std: statistics of the red, green and blue channel, for pixels in [0, 1].
    """

    kind: Literal["space_time"] = "space_time"
    size: int = Field(default=224, gt=0)
    frames: int = Field(default=16, gt=0)
    patch_size: int = Field(default=16, gt=0)
    tubelet: int = Field(default=2, gt=0)
    attention: Literal["divided", "joint"] = "divided"
    mean: ColourValues = OPENAI_MEAN
    std: ColourValues = OPENAI_STD

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.patch_size:
            raise ValueError(f"size: got {self.size}, wanted a multiple of patch_size {self.patch_size}")
        if self.frames % self.tubelet:
            raise ValueError(f"frames: got {self.frames}, wanted a multiple of tubelet {self.tubelet}")
        return self

    def build(self) -> SpaceTime:
        """Build it, load `weights` (positions resampled to this grid), freeze."""
        encoder = SpaceTime(self)
        load_and_freeze(encoder, self, adapt=encoder.fit_positions)
        return encoder


class DividedBlock(nn.Module):
    """Divided attention: x + attention over time(norm(x)), among tokens of one place; then a block among tokens of one time."""

    def __init__(
        self, space: Block, width: int, heads: int, depth: int, drop_path: float, dropout: float, residual: Residual
    ) -> None:
        super().__init__()
        self.norm = block_norm(width, residual)
        self.time = Attention(width, heads, causal=False)
        initialise_attention(self.time, width, depth)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.space = space

    def forward(
        self, x: Tensor, times: int, places: Tensor | None, with_mlp: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T, D].

        Args:
            x: tokens, the places of the first time first.
            times: number of times (tubelets).
            places: [B, T, 2], time and place of each token; None: all tokens, in reading order.
            with_mlp: return the output of the mlp too, see `Block.forward`.
        """
        if places is not None:  # any tokens in any order, with attention masks
            same = places[:, :, None] == places[:, None]  # [B, T, T, 2]
            at_time, at_place = same[..., 0][:, None], same[..., 1][:, None]
            x = x + self.drop_path(self.dropout(self.time(self.norm(x), at_place)))
            return self.space(x, at_time, with_mlp=with_mlp)  # type: ignore[no-any-return]
        batch, _, width = x.shape
        columns = self.norm(x).reshape(batch, times, -1, width).transpose(1, 2)  # [B, S, times, D]
        seen = self.time(columns.flatten(0, 1)).reshape(batch, -1, times, width).transpose(1, 2).flatten(1, 2)
        x = x + self.drop_path(self.dropout(seen))
        found = self.space(x.reshape(batch * times, -1, width), with_mlp=with_mlp)
        if with_mlp:
            return tuple(one.reshape(batch, -1, width) for one in found)
        return found.reshape(batch, -1, width)  # type: ignore[no-any-return]


class SpaceTime(Encoder):
    """Space-time transformer: clips [B, T, 3, H, W] (images: clips of one frame) -> pooled [B, D], the mean, and tokens [B, T', D].

    The grid is (tubelets in time, rows, columns), in this reading order. The last frame is repeated until tubelets
    are full. Positions are the sum of a table for space and one for time.
    """

    capabilities = frozenset(
        {Encoder.TOKENS, Encoder.MASK_DROP, Encoder.MASK_REPLACE, Encoder.HIDDEN, Encoder.MLPS, Encoder.BIDIRECTIONAL}
    )
    grid: tuple[int, int, int]

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.width, self.depth = config.width, config.depth
        self.tubelet, self.patch_size = config.tubelet, config.patch_size
        self.checkpointing, self.residual = config.checkpointing, config.residual
        side = config.size // config.patch_size
        self.grid = (config.frames // config.tubelet, side, side)
        self.pixels = Pixels(config.mean, config.std)
        step = (config.tubelet, config.patch_size, config.patch_size)
        self.patch_embedding = nn.Conv3d(3, self.width, step, step)
        scale = self.width**-0.5
        self.space_embedding = nn.Parameter(scale * torch.randn(side * side, self.width))
        self.time_embedding = nn.Parameter(scale * torch.randn(self.grid[0], self.width))
        blocks: list[Any] = list(config.transformer())
        self.divided = config.attention == "divided"
        self.blocks = nn.ModuleList(
            DividedBlock(
                block, self.width, config.heads, config.depth, block.drop_path.rate, config.dropout, config.residual
            )
            if self.divided
            else block
            for block in blocks
        )
        self.norm_post = nn.LayerNorm(self.width)

    def prepare(self, x: Tensor) -> Tensor:
        """uint8, or float in [0, 1], [B, T, 3, H, W] or [B, 3, H, W] -> normalised float [B, 3, T, H, W].

        The last frame is repeated until tubelets are full.
        """
        x = as_frames(x)
        made = self.pixels(x.flatten(0, 1)).reshape(x.shape).transpose(1, 2)
        missing = -made.shape[2] % self.tubelet
        return F.pad(made, (0, 0, 0, 0, 0, missing), mode="replicate") if missing else made

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
        """See `Encoder.forward`. H and W are multiples of the patch size.

        Raises:
            ValueError: `x` is neither clips nor images, patches do not tile it, or `hidden` is above the depth.
        """
        self.check_hidden(hidden)
        x, grid = self._tubelets(self.prepare(x))
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[..., None], value.to(x.dtype), x)
        x = x + self._positions(grid)
        places = None
        if keep is not None:
            x = torch.take_along_dim(x, keep[..., None], dim=1)
            places = torch.stack([keep // (grid[1] * grid[2]), keep % (grid[1] * grid[2])], dim=2)
        x, states = as_stream(x, self.residual), []
        for number, block in enumerate(self.blocks):
            asked = number >= self.depth - hidden
            arguments = (x, grid[0], places) if self.divided else (x, None, None, None)
            x = run_block(block, self.checkpointing, *arguments, asked and mlps)
            x, output = x if asked and mlps else (x, x)
            states += [output] if asked else []
        x = self.norm_post(x)
        return Features(x.mean(1), x, grid if keep is None else None, tuple(states) or None)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: embeddings; each block; the final norm."""
        first = [self.space_embedding, self.time_embedding, *self.patch_embedding.parameters()]
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm_post.parameters())]

    def fit_positions(self, state: State) -> None:
        """Resample both position tables of a checkpoint, in place, to this size and number of frames."""
        fit_positions(state, "space_embedding", self.grid[1:], 0)
        fit_columns(state, "time_embedding", (1, self.grid[0]), 0)

    def _tubelets(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        # [B, 3, T, H, W] -> [B, T', D] in reading order, and the grid
        frames, height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"got frames of {height} x {width} pixels, wanted multiples of the patch size {self.patch_size}"
            )
        grid = (frames // self.tubelet, height // self.patch_size, width // self.patch_size)
        return embed_patches(self.patch_embedding, x), grid

    def _positions(self, grid: tuple[int, int, int]) -> Tensor:
        # [T', D]
        area: TokenGrid = grid[1:]
        space = resize_positions(self.space_embedding, self.grid[1:], area, prefix=0)
        time = resize_positions(self.time_embedding, (1, self.grid[0]), (1, grid[0]), prefix=0)
        return (time[:, None] + space).flatten(0, 1)
