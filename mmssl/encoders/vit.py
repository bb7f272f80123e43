"""Vision transformer (ViT) of CLIP (arXiv:2010.11929, arXiv:2103.00020), with masks for masked pretraining."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.core.input_spec import InputSpec
from mmssl.core.positions import sincos_positions
from mmssl.encoders.adapters.open_clip_names import to_open_clip_name
from mmssl.encoders.adapters.timm import fit_channels
from mmssl.encoders.adapters.transformers_names import two_towers_to_open_clip
from mmssl.encoders.norms import USUAL_EPS, set_epsilon
from mmssl.encoders.patches import embed_patches
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD, Pixels, Statistics
from mmssl.encoders.positions import fit_positions, resize_positions
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze


class VisionTransformerConfig(TransformerConfig):
    """Settings of a vision transformer (ViT); the defaults are CLIP's ViT-B/16.

    Attributes:
        size: usual pixels of a side of the images; other sizes work too: position embeddings are resampled.
        patch_size: pixels of a side of a patch; divides `size`.
        pool: "cls" takes the class token, "mean" the mean of the patch tokens.
        class_token: whether a learned class token goes first.
        registers: number of learned tokens without a place, which are not returned (Darcet et al. 2024, arXiv:2309.16588).
        pre_norm: whether a LayerNorm comes before the first block, as in CLIP.
        positions: "learned" position embeddings, or "sincos": fixed sines and cosines, as in MAE and MoCo v3.
        patches: "learned" patch embedding, or "random": it keeps its initial weights, which keeps MoCo v3 stable
            (arXiv:2104.02057, section 4).
        layer_scale: initial factor of each residual branch (LayerScale); None: no such factor.
        norm_eps: what layer norms add to the variance; ImageBind: 1e-6.
        patch_dropout: share of patches that the encoder drops at random in training (FLIP, arXiv:2212.00794).
        mean, std: statistics of each channel, for pixels in [0, 1], or in the units of arrays; the encoder has as many channels.
    """

    kind: Literal["vit"] = "vit"
    size: int = Field(default=224, gt=0)
    patch_size: int = Field(default=16, gt=0)
    pool: Literal["cls", "mean"] = "cls"
    class_token: bool = True
    registers: int = Field(default=0, ge=0)
    pre_norm: bool = True
    positions: Literal["learned", "sincos"] = "learned"
    patches: Literal["learned", "random"] = "learned"
    layer_scale: float | None = None
    norm_eps: float = Field(default=USUAL_EPS, gt=0)
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    mean: Statistics = OPENAI_MEAN
    std: Statistics = OPENAI_STD

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.patch_size:
            raise ValueError(f"size: got {self.size}, wanted a multiple of patch_size {self.patch_size}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("got pool: cls and class_token: false, wanted a class token to pool; use pool: mean")
        return self

    def wants(self) -> InputSpec:
        """As many channels as `mean` has numbers."""
        return InputSpec(channels=len(self.mean))

    def build(self) -> VisionTransformer:
        """Build it, load `weights` (own, open_clip's or transformers' CLIP, ImageBind; positions and channels fitted), freeze."""
        encoder = VisionTransformer(self)

        def adapt(state: State) -> None:
            fit_positions(state, "positional_embedding", encoder.grid, encoder.prefix)
            fit_channels(state, "patch_embedding.weight", len(self.mean))

        load_and_freeze(
            encoder,
            self,
            alias=to_open_clip_name,
            translate=two_towers_to_open_clip,
            ignore=("proj",),  # open_clip's projection into the shared space is part of its tower
            adapt=adapt,
        )
        return encoder


class VisionTransformer(Encoder):
    """Vision transformer (ViT): images [B, C, H, W] -> pooled [B, D] and patch tokens [B, T, D], both after the final norm.

    Every parameter gets a gradient from `pooled`. The projection into the shared space belongs to the objective.
    """

    capabilities = frozenset(
        {Encoder.TOKENS, Encoder.MASK_DROP, Encoder.MASK_REPLACE, Encoder.HIDDEN, Encoder.MLPS, Encoder.BIDIRECTIONAL}
    )
    grid: tuple[int, int]

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.width, self.depth = config.width, config.depth
        self.patch_size = config.patch_size
        self.grid = (config.size // config.patch_size,) * 2
        self.pool = config.pool
        self.patch_dropout = config.patch_dropout
        self.pixels = Pixels(config.mean, config.std)
        self.patch_embedding = nn.Conv2d(len(config.mean), self.width, config.patch_size, config.patch_size, bias=False)
        scale = self.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(self.width)) if config.class_token else None
        self.prefix = int(config.class_token)
        rows = self.prefix + self.grid[0] * self.grid[1]
        self.positional_embedding = nn.Parameter(scale * torch.randn(rows, self.width))
        if config.positions == "sincos":  # the class token has no place
            fixed = F.pad(sincos_positions(self.grid, self.width), (0, 0, self.prefix, 0))
            self.positional_embedding = nn.Parameter(fixed, requires_grad=False)
        self.patch_embedding.requires_grad_(config.patches == "learned")
        self.norm_pre = nn.LayerNorm(self.width) if config.pre_norm else nn.Identity()
        self.registers = nn.Parameter(scale * torch.randn(config.registers, self.width)) if config.registers else None
        self.blocks = config.transformer(layer_scale=config.layer_scale)
        self.norm_post = nn.LayerNorm(self.width)
        set_epsilon(self, config.norm_eps)

    def prepare(self, x: Tensor) -> Tensor:
        """uint8, or float in [0, 1], [B, C, H, W] -> normalised float."""
        return self.pixels(x)  # type: ignore[no-any-return]

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
        """See `Encoder.forward`. H and W are multiples of the patch size; T is their product in patches, T_keep with `keep`.

        In training, `patch_dropout` drops tokens too, unless `keep` or `replace` names tokens by their places.

        Raises:
            ValueError: `x` is not images, patches do not tile it, or `hidden` is above the depth.
        """
        self.check_hidden(hidden)
        x, grid = self._patches(self.prepare(x))
        if replace is not None:
            mask, value = replace
            x = torch.where(mask[..., None], value.to(x.dtype), x)
        positions = resize_positions(self.positional_embedding, self.grid, grid, self.prefix)
        x = x + positions[self.prefix :]
        if keep is None and replace is None and self.training and self.patch_dropout:
            keep = self._draw_patches(x)
        if keep is not None:
            x = torch.take_along_dim(x, keep[..., None], dim=1)
        content = slice(-x.shape[1], None)  # class token and registers go first
        if self.registers is not None:
            x = torch.cat([self.registers.expand(x.shape[0], -1, -1), x], dim=1)
        if self.class_embedding is not None:
            x = torch.cat([(self.class_embedding + positions[0]).expand(x.shape[0], 1, -1), x], dim=1)
        if pooled_only and self.pool == "cls" and not hidden:
            x, _ = self.blocks(self.norm_pre(x), pick=0)
            return Features(self.norm_post(x)[:, 0])
        x, states = self.blocks(self.norm_pre(x), hidden=hidden, mlps=mlps)
        x = self.norm_post(x)
        tokens = x[:, content]
        pooled = x[:, 0] if self.pool == "cls" else tokens.mean(1)
        states = tuple(state[:, content] for state in states)
        return Features(pooled, tokens, grid if keep is None else None, states or None)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: embeddings and the norm before the blocks; each block; the final norm."""
        embeddings = [
            self.class_embedding,
            self.registers,
            self.positional_embedding,
            *self.patch_embedding.parameters(),
        ]
        first = [*(parameter for parameter in embeddings if parameter is not None), *self.norm_pre.parameters()]
        blocks = [list(block.parameters()) for block in self.blocks]
        return [first, *blocks, list(self.norm_post.parameters())]

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        # [B, C, H, W] -> [B, T, D] in reading order, and the grid
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"got images of {height} x {width} pixels, wanted multiples of the patch size {self.patch_size}"
            )
        return embed_patches(self.patch_embedding, x), (height // self.patch_size, width // self.patch_size)

    def _draw_patches(self, x: Tensor) -> Tensor:
        # Positions [B, T_keep] in reading order, drawn for each sample on the device of the tokens.
        count = max(1, int(x.shape[1] * (1 - self.patch_dropout)))
        noise = torch.rand(x.shape[:2], device=x.device)
        return noise.topk(count, dim=1).indices.sort(dim=1).values
