"""Video encoder from an image encoder on each frame: pooled by their mean, or by a small transformer over time.

CLIP4Clip (arXiv:2104.08860) compares the two for retrieval: the mean needs no training and is hard to beat on small data.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.adapters.adapter import refuse_masks
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfVisionConfig
from mmssl.encoders.pixels import as_frames
from mmssl.encoders.positions import fit_columns, resize_positions, sinusoidal_positions
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.transformer import BlocksConfig, Transformer
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.encoders.weights import load_and_freeze

PictureEncoderConfig = Annotated[
    VisionTransformerConfig | ResNetConfig | TimmConfig | OpenClipConfig | HfVisionConfig, Field(discriminator="kind")
]


class FrameVideoConfig(BlocksConfig):
    """Settings of a frame-wise video encoder; `depth`, `heads` and other block settings are those of the transformer over time.

    Attributes:
        image: the encoder of each frame. Its `weights` and `frozen` concern it alone; `weights` beside it load the whole encoder.
        frames: usual number of frames of a clip; other numbers work too.
        pool: "mean": the mean of the frames' pooled vectors; "transformer": attention between frames, then the mean.
        tokens: "frames": one token a frame; "patches": the image encoder's patch tokens of each frame, without attention between
            frames (not with pool: transformer).
        positions: position embeddings of frames: "learned" (resampled for other numbers of frames) or "sinusoidal".
        frame_norm: normalise each frame's vector before its position is added: "batch" (batch norm over all frames) or "layer".
            Vectors without a last norm, such as those of CLIP's ResNet, are much smaller than sinusoidal positions, and alike but
            for a small part, so that the order of frames is hardly learnt. Batch norm makes that part the whole. None: as they are.
    """

    kind: Literal["frame_video"] = "frame_video"
    image: PictureEncoderConfig
    frames: int = Field(default=8, gt=0)
    pool: Literal["mean", "transformer"] = "mean"
    tokens: Literal["frames", "patches"] = "frames"
    depth: int = Field(default=2, gt=0)
    heads: int = Field(default=8, gt=0)
    positions: Literal["learned", "sinusoidal"] = "learned"
    frame_norm: Literal["batch", "layer"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pool == "transformer" and self.tokens == "patches":
            raise ValueError(
                "got tokens: patches with pool: transformer, which attends between frames only; use tokens: frames"
            )
        if self.frame_norm and self.pool != "transformer":
            raise ValueError(f"got frame_norm with pool: {self.pool}, wanted it with pool: transformer; leave it out")
        if isinstance(self.image, OpenClipConfig) and self.image.tower != "image":
            raise ValueError("image: got the text tower of an open_clip model, wanted tower: image")
        if self.unlocked_layers and self.image.unlocked_layers:
            raise ValueError("got unlocked_layers both here and in image, wanted one of them; leave the other out")
        return self

    def build(self) -> FrameVideo:
        """Build it, load `weights` (time positions resampled to this number of frames), freeze.

        Raises:
            ValueError: the image encoder has no tokens and tokens: patches needs them, or `heads` do not divide its width.
            CheckpointError: the weights do not fit.
        """
        encoder = FrameVideo(self)
        load_and_freeze(encoder, self, adapt=lambda state: fit_columns(state, "time_embedding", (1, self.frames), 0))
        return encoder


class FrameVideo(Encoder):
    """Frame-wise video encoder: clips [B, T, 3, H, W] (images [B, 3, H, W]: clips of one frame) -> pooled [B, D] and tokens.

    Frames are folded into the batch: memory is that of B x T images. The grid of tokens is (T,), or (T, rows, columns) of
    patches. An `image` without a trainable parameter stays in evaluation mode.
    """

    capabilities = frozenset({Encoder.TOKENS})

    def __init__(self, config: FrameVideoConfig) -> None:
        super().__init__()
        self.image: Encoder = config.image.build()
        self.width = self.image.width
        self.patches = config.tokens == "patches"
        if self.patches and (Encoder.TOKENS not in self.image.capabilities or self.image.grid is None):
            raise ValueError(f"got tokens: patches, and {type(self.image).__name__} has no tokens; use tokens: frames")
        self.grid = (config.frames, *(self.image.grid or ())) if self.patches else (config.frames,)
        self.frames = config.frames
        self.time: Transformer | None = None
        self.time_embedding: nn.Parameter | None = None
        self.norm: nn.LayerNorm | None = None
        self.frame_norm: nn.Module = nn.Identity()
        if config.pool == "transformer":
            if self.width % config.heads:
                raise ValueError(
                    f"heads: got {config.heads}, wanted a divisor of the image encoder's width {self.width}"
                )
            self.time = config.blocks(self.width)
            if config.positions == "learned":
                self.time_embedding = nn.Parameter(self.width**-0.5 * torch.randn(config.frames, self.width))
            self.norm = nn.LayerNorm(self.width)
            if config.frame_norm is not None:
                self.frame_norm = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[config.frame_norm](self.width)
            self.depth = config.depth
            self.capabilities |= {Encoder.HIDDEN, Encoder.BIDIRECTIONAL}
        elif self.patches:
            self.depth = self.image.depth
            self.capabilities |= self.image.capabilities & {Encoder.HIDDEN}

    def prepare(self, x: Tensor) -> Tensor:
        """uint8, or float in [0, 1], [B, T, 3, H, W] or [B, 3, H, W] -> the image encoder's normalised input [B, T, 3, H, W]."""
        x = as_frames(x)
        made = self.image.prepare(x.flatten(0, 1))
        return made.reshape(*x.shape[:2], *made.shape[1:])

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`.

        Raises:
            ValueError: masks are given, `hidden` is above the depth, or `x` is neither clips nor images.
        """
        self.check_hidden(hidden)
        refuse_masks(self, keep, replace)
        x = as_frames(x)
        batch, frames = x.shape[:2]
        only = pooled_only or not self.patches
        each: Features = self.image(x.flatten(0, 1), hidden=hidden if self.patches else 0, pooled_only=only)
        tokens = self.frame_norm(each.pooled).reshape(batch, frames, -1)  # [B, T, D]
        states: tuple[Tensor, ...] = ()
        if self.time is not None and self.norm is not None:
            tokens, states = self.time(tokens + self._positions(frames, tokens), hidden=hidden)
            tokens = self.norm(tokens)
        pooled = tokens.mean(1)
        if not self.patches:
            return Features(pooled, tokens, (frames,), states or None)
        states = tuple(state.reshape(batch, -1, self.width) for state in each.hidden or ())
        if each.tokens is None:
            return Features(pooled, hidden=states or None)
        patches = each.tokens.reshape(batch, -1, self.width)
        return Features(pooled, patches, None if each.grid is None else (frames, *each.grid), states or None)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: those of the image encoder; norm and positions of frames with the first block over time; the rest."""
        groups = self.image.layers()
        if self.time is not None and self.norm is not None:
            blocks = [list(block.parameters()) for block in self.time]
            if self.time_embedding is not None:
                blocks[0] = [self.time_embedding, *blocks[0]]
            blocks[0] = [*self.frame_norm.parameters(), *blocks[0]]
            groups = [*groups, *blocks, list(self.norm.parameters())]
        return groups

    def train(self, mode: bool = True) -> FrameVideo:
        """Switch to training mode; an image encoder without a trainable parameter stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.image.parameters()):
            self.image.eval()
        return self

    def _positions(self, frames: int, like: Tensor) -> Tensor:
        if self.time_embedding is None:
            return sinusoidal_positions(frames, self.width, like.device)
        return resize_positions(self.time_embedding, (1, self.frames), (1, frames), prefix=0)
