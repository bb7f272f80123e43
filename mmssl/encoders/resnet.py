"""CLIP's residual network (arXiv:2103.00020, section 2.4): three-layer stem, blurred strides, attention pooling.

Parameters have the names of OpenAI's CLIP and open_clip, so that their checkpoints load as they are.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, EncoderConfig, Features
from mmssl.core.input_spec import InputSpec
from mmssl.encoders.adapters.adapter import refuse_masks
from mmssl.encoders.adapters.timm import fit_channels
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD, Pixels, Statistics
from mmssl.encoders.positions import TokenGrid, fit_positions, resize_positions
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze


class StagesConfig(EncoderConfig):
    """Settings of every residual network (image and audio); the defaults are CLIP's RN50.

    The stem divides the resolution by 4, each stage after the first by 2 more. For small inputs take fewer stages:
    `layers: [2, 2]` turns 32 pixels of a side into 4 cells.

    Attributes:
        layers: blocks of each stage, one to four stages.
        channels: channels inside the blocks of the first stage. They double with each stage; a block's output has four times more.
        pool: "attention": attention pooling with one query, as in CLIP; "mean": the mean of the feature map.
        heads: heads of the attention pooling; None: one for every 64 channels.
        output_dim: D, output size of the attention pooling; None: half the channels of the feature map (1024 for RN50). With
            pool: mean, D is the number of channels of the feature map.
        zero_init_residual: zero the last batch norm of each block, so that it starts as its shortcut (as open_clip does; Goyal et
            al. 2017, arXiv:1706.02677). Better in long runs with large batches; small networks in short runs learn sooner without.
    """

    layers: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1, max_length=4)
    channels: int = Field(default=64, gt=0, multiple_of=2)
    pool: Literal["attention", "mean"] = "attention"
    heads: int | None = Field(default=None, gt=0)
    output_dim: int | None = Field(default=None, gt=0)
    zero_init_residual: bool = True

    @property
    def stride(self) -> int:
        """Total stride: pixels (or filters and frames) from one cell of the last feature map to the next."""
        return int(2 ** (len(self.layers) + 1))

    @property
    def feature_dim(self) -> int:
        """Channels of the last feature map."""
        return int(self.channels * 4 * 2 ** (len(self.layers) - 1))

    @property
    def pool_heads(self) -> int:
        """Heads of the attention pooling."""
        return self.heads or max(1, self.feature_dim // 64)

    @model_validator(mode="after")
    def _poolable(self) -> Self:
        if min(self.layers) < 1:
            raise ValueError(f"layers: got {list(self.layers)}, wanted at least one block in every stage")
        if self.pool == "mean" and not (self.output_dim is None and self.heads is None):
            raise ValueError(
                f"got pool: mean with heads or output_dim, which only pool: attention has (D is {self.feature_dim}); leave both out"
            )
        if self.pool == "attention" and self.feature_dim % self.pool_heads:
            raise ValueError(
                f"heads: got {self.pool_heads}, wanted a divisor of the {self.feature_dim} channels of the feature map"
            )
        return self


class ResNetConfig(StagesConfig):
    """Settings of an image ResNet (CLIP's modified ResNet).

    Attributes:
        size: usual pixels of a side of the images; a multiple of the total stride.
        mean, std: statistics of each channel, for pixels in [0, 1], or in the units of arrays; the encoder has as many channels.
    """

    kind: Literal["resnet"] = "resnet"
    size: int = Field(default=224, gt=0)
    mean: Statistics = OPENAI_MEAN
    std: Statistics = OPENAI_STD

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.stride:
            raise ValueError(
                f"size: got {self.size}, wanted a multiple of the stride {self.stride} of {len(self.layers)} stages"
            )
        return self

    def wants(self) -> InputSpec:
        """As many channels as `mean` has numbers."""
        return InputSpec(channels=len(self.mean))

    def build(self) -> ResNet:
        """Build it, load `weights` (own, or a whole open_clip checkpoint; positions and channels fitted), freeze."""
        encoder = ResNet(self)

        def adapt(state: State) -> None:
            fit_positions(state, "attnpool.positional_embedding", encoder.grid, 1)
            fit_channels(state, "conv1.weight", len(self.mean))

        load_and_freeze(encoder, self, adapt=adapt)
        return encoder


class Bottleneck(nn.Module):
    """Bottleneck block: 1x1, 3x3, 1x1 convolutions and a shortcut; strides are average pools (no aliasing), partial at the ends."""

    def __init__(self, incoming: int, channels: int, stride: int, zero_init: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        if zero_init:
            nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or incoming != 4 * channels:
            layers = {"-1": nn.AvgPool2d(stride, ceil_mode=True), "0": nn.Conv2d(incoming, 4 * channels, 1, bias=False)}
            self.downsample = nn.Sequential()
            for name, layer in (layers | {"1": nn.BatchNorm2d(4 * channels)}).items():
                self.downsample.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 channels, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pool(y)))
        return F.relu(y + self.downsample(x))


class AttentionPool(nn.Module):
    """Attention pooling: one attention layer whose query is the mean of the feature map (arXiv:2103.00020, section 2.4).

    Only the query of the mean is computed, as the others are not used. The token of a cell is the output of the layer when the
    query attends to that cell alone, as dense features are read from such networks (MaskCLIP, arXiv:2112.01071).
    """

    def __init__(self, width: int, heads: int, output_dim: int, grid: TokenGrid) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.positional_embedding = nn.Parameter(torch.randn(grid[0] * grid[1] + 1, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, rows, columns] -> pooled [B, D] and tokens [B, T, D]."""
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # [B, T, C]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        x = x + resize_positions(self.positional_embedding, self.grid, grid, prefix=1)
        values = self.v_proj(x)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q_proj(x[:, :1]), self.k_proj(x), values)
        )
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
        return self.c_proj(pooled), self.c_proj(values[:, 1:])


class Stages(Encoder):
    """Base of residual networks: stem, stages and pooling; subclasses prepare the input (images, spectrograms).

    Tokens are the cells of the last feature map. Batch norm uses the statistics of the process' micro-batch. Every parameter gets
    a gradient from `pooled`; with `zero_init_residual` the gradients inside blocks are zero at the start.

    Args:
        config: settings of the stages.
        inputs: channels of the prepared input.
        grid: cells of a full-size input.
    """

    capabilities = frozenset({Encoder.TOKENS})
    grid: TokenGrid

    def __init__(self, config: StagesConfig, inputs: int, grid: TokenGrid) -> None:
        super().__init__()
        self.grid = grid
        self.stride = config.stride
        half = config.channels // 2
        self.conv1 = nn.Conv2d(inputs, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, config.channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(config.channels)
        incoming = config.channels
        self.stages: list[str] = []
        for number, blocks in enumerate(config.layers):
            channels = config.channels * 2**number
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 0 and block == 0 else 1
                stage.append(Bottleneck(incoming, channels, stride, config.zero_init_residual))
                incoming = 4 * channels
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], stage)
        self.attnpool = None
        self.width = config.feature_dim
        if config.pool == "attention":
            self.width = config.output_dim or config.feature_dim // 2
            self.attnpool = AttentionPool(config.feature_dim, config.pool_heads, self.width, self.grid)

    def encode(self, x: Tensor) -> Features:
        """Prepared input [B, C, H, W] -> pooled and tokens; a partial row or column of cells counts as one."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2, ceil_mode=True)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        grid = (x.shape[2], x.shape[3])
        if self.attnpool is None:
            tokens = x.flatten(2).transpose(1, 2)
            return Features(tokens.mean(1), tokens, grid)
        pooled, tokens = self.attnpool(x)
        return Features(pooled, tokens, grid)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: the stem; each block; the attention pooling."""
        stem = [
            p
            for layer in (self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3)
            for p in layer.parameters()
        ]
        blocks = [list(block.parameters()) for stage in self.stages for block in self.get_submodule(stage).children()]
        return [stem, *blocks, *([list(self.attnpool.parameters())] if self.attnpool is not None else [])]


class ResNet(Stages):
    """CLIP's modified ResNet: images [B, C, H, W] -> pooled [B, D] and the cells of the last feature map as tokens [B, T, D]."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config, len(config.mean), (config.size // config.stride,) * 2)
        self.pixels = Pixels(config.mean, config.std)

    def prepare(self, x: Tensor) -> Tensor:
        """uint8, or float in [0, 1], [B, C, H, W] -> normalised float."""
        # Convolutions are about twice as fast with channels last, on CPUs too.
        pixels: Tensor = self.pixels(x)
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`. H and W are multiples of the total stride.

        Raises:
            ValueError: masks or hidden layers are asked for, or `x` is not images of such a size.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        x = self.prepare(x)
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(
                f"got images of {x.shape[2]} x {x.shape[3]} pixels, wanted multiples of the stride {self.stride}"
            )
        return self.encode(x)
