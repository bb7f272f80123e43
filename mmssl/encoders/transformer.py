"""Pre-norm transformer blocks and their settings, shared by all of our transformers."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import EncoderConfig
from mmssl.encoders.attend import attend
from mmssl.encoders.checkpointing import Checkpointing, run_block
from mmssl.encoders.norms import Residual, as_stream, block_norm
from mmssl.encoders.packing import Packing

BlockActivation = Literal["gelu", "quick_gelu"]
PickedToken = int | Tensor
"""Token of each sample that the last block computes: one number for all samples, or [B] numbers. With packing: `last`."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        # The same function, written with silu, saves one tensor for backward instead of two.
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[BlockActivation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class DropPath(nn.Module):
    """Stochastic depth: zeroes a residual branch for a sample with probability `rate` in training (arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, T, D], or packed [N or B, D] -> the same shape and expectation. Whole samples are dropped, packed ones too."""
        if self.rate == 0 or not self.training:
            return x
        kept = 1 - self.rate
        if packing is None:
            return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(kept) / kept
        alive = x.new_empty(packing.texts, 1).bernoulli_(kept)
        return x * packing.spread(alive, len(x)) / kept

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"rate={self.rate:g}"


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, packing: Packing | None = None, pick: PickedToken | None = None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, 1, D] with `pick`; packed [N, D] -> [N, D], or [B, D].

        `mask` is bool, broadcastable to [B, heads, T, T], True where attention is allowed; with `pick` to [B, heads, 1, T].
        """
        if pick is None:
            parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # each [..., T, heads, D / heads]
        else:
            width = x.shape[-1]
            if type(self.qkv) is nn.Linear:
                weights, biases = self.qkv.weight.tensor_split([width]), self.qkv.bias.tensor_split([width])
                q, kv = (F.linear(*each) for each in zip((pick_tokens(x, pick), x), weights, biases, strict=True))
            else:  # with an adapter (LoRA), which has no such halves
                q, kv = self.qkv(pick_tokens(x, pick))[..., :width], self.qkv(x)[..., width:]
            parts = tuple(part.reshape(*part.shape[:-1], self.heads, -1) for part in (q, *kv.chunk(2, -1)))
        if packing is not None:
            return self.out(packing.attend(*parts, causal=self.causal and pick is None))  # type: ignore[no-any-return]
        if self.causal and pick is not None:
            before = torch.arange(x.shape[1], device=x.device) <= torch.as_tensor(pick, device=x.device).reshape(-1, 1)
            mask = before[:, None, None] if mask is None else mask & before[:, None, None]
        q, k, v = (part.transpose(1, 2) for part in parts)  # each [B, heads, T, D / heads]
        x = attend(q, k, v, mask, causal=self.causal and pick is None)
        return self.out(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """The MLP of a transformer block: two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: BlockActivation) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)), with LayerScale, dropout and drop path."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        activation: BlockActivation,
        causal: bool,
        layer_scale: float | None,
        drop_path: float,
        dropout: float,
        residual: Residual = "float32",
    ) -> None:
        super().__init__()
        self.norm1 = block_norm(width, residual)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = block_norm(width, residual)
        self.mlp = Mlp(width, int(width * mlp_ratio), activation)
        scale = None if layer_scale is None else torch.full((width,), layer_scale)
        self.scale1 = None if scale is None else nn.Parameter(scale.clone())
        self.scale2 = None if scale is None else nn.Parameter(scale.clone())
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        packing: Packing | None = None,
        pick: PickedToken | None = None,
        with_mlp: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Shapes as in `Attention.forward`; `with_mlp`: and the output of the mlp alone, of the same shape."""
        update = self.attention(self.norm1(x), mask, packing=packing, pick=pick)
        x = (x if pick is None else pick_tokens(x, pick)) + self._branch(update, self.scale1, packing)
        update = self.mlp(self.norm2(x))
        x = x + self._branch(update, self.scale2, packing)
        return (x, update) if with_mlp else x

    def _branch(self, x: Tensor, scale: Tensor | None, packing: Packing | None) -> Tensor:
        x = self.dropout(x)
        return self.drop_path(x if scale is None else x * scale, packing)  # type: ignore[no-any-return]


def initialise_attention(attention: Attention, width: int, depth: int) -> None:
    """Initialise attention weights as `Transformer` does, for a stack of `depth` blocks."""
    nn.init.normal_(attention.qkv.weight, std=width**-0.5)
    nn.init.normal_(attention.out.weight, std=width**-0.5 * (2 * depth) ** -0.5)
    nn.init.zeros_(attention.qkv.bias)
    nn.init.zeros_(attention.out.bias)


class Transformer(nn.ModuleList):
    """Transformer: a stack of pre-norm blocks.

    Initialised as open_clip's text tower: normal, of standard deviation D^-0.5 for queries, keys and values,
    (2 D)^-0.5 for the first layer of each mlp, and D^-0.5 (2 depth)^-0.5 for the two layers that write into the residual
    stream, so that the stream's size does not grow with depth. Attention biases start at 0, mlp biases as in `nn.Linear`.

    Args:
        width: D.
        depth: number of blocks.
        heads: attention heads of each block; divides D.
        mlp_ratio: width of the mlp in units of D.
        activation: "gelu" (exact) or "quick_gelu".
        causal: each token attends to itself and earlier tokens only.
        layer_scale: initial factor of each branch (arXiv:2103.17239); None: no such parameter.
        drop_path: probability of dropping a branch in the last block; grows linearly from 0 in the first.
        dropout: dropout probability of each branch's output.
        checkpointing: recompute each block in backward instead of keeping its activations; see `run_block`.
        residual: "bf16": under autocast to bfloat16 the residual stream is rounded to it after each branch.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: BlockActivation = "gelu",
        causal: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        checkpointing: Checkpointing = False,
        residual: Residual = "float32",
    ) -> None:
        super().__init__()
        self.checkpointing, self.residual = checkpointing, residual
        for number in range(depth):
            block = Block(
                width,
                heads,
                mlp_ratio=mlp_ratio,
                activation=activation,
                causal=causal,
                layer_scale=layer_scale,
                drop_path=drop_path * number / max(1, depth - 1),
                dropout=dropout,
                residual=residual,
            )
            initialise_attention(block.attention, width, depth)
            nn.init.normal_(block.mlp.up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.down.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            self.append(block)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        hidden: int = 0,
        mlps: bool = False,
        packing: Packing | None = None,
        pick: PickedToken | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all blocks.

        Args:
            x: [B, T, D], or packed [N, D].
            mask: bool, broadcastable to [B, heads, T, T], True where attention is allowed; None: everywhere (or causal).
            hidden: number of last block outputs to return.
            mlps: return what the mlps of these blocks add, before LayerScale and dropout, in place of their outputs.
            packing: index of packed tokens, which need no mask.
            pick: one token of each sample: the last block is computed for it alone, which is exact.
                `mask` must not differ between queries, and `hidden` must be 0. With packing it is the last token of each text.

        Returns:
            The output [B, T, D] or [N, D], or with `pick` [B, 1, D] or [B, D]; and the last `hidden` block outputs from early to
            late, the output among them, or what the mlps add.
        """
        x, outputs = as_stream(x, self.residual), []
        for number, block in enumerate(self):
            wanted = pick if number == len(self) - 1 else None
            asked = number >= len(self) - hidden
            x = run_block(block, self.checkpointing, x, mask, packing, wanted, asked and mlps)
            x, output = x if asked and mlps else (x, x)
            outputs += [output] if asked else []
        return x, tuple(outputs)


class BlocksConfig(EncoderConfig):
    """Settings of every encoder with a stack of blocks.

    Attributes:
        depth: number of blocks.
        heads: attention heads; divides the width D.
        mlp_ratio: width of the mlps in units of D.
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        dropout: dropout probability of each residual branch.
    """

    depth: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def blocks(self, width: int, **options: Any) -> Transformer:
        """Build the stack of width D; `options` are further arguments of `Transformer`."""
        return Transformer(
            width,
            self.depth,
            self.heads,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
            dropout=self.dropout,
            **options,
        )


class TransformerConfig(BlocksConfig):
    """Settings of every transformer encoder.

    Attributes:
        width: D, size of each token and of the pooled vector.
        activation: "gelu", or "quick_gelu" for OpenAI's weights.
        checkpointing: recompute blocks in backward: less memory, a third more work. "selective": all but matrix products and
            attention, for little work; not with `compile`.
        residual: type of the residual stream with `precision: bf16`. "bf16" halves what it takes of memory and memory traffic, and
            rounds the stream after each branch, to 2^-9 of its size: losses differ a little from those of "float32".
    """

    width: int = Field(default=768, gt=0)
    activation: BlockActivation = "gelu"
    checkpointing: Checkpointing = False
    residual: Residual = "float32"

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: got {self.width}, wanted a multiple of heads {self.heads}")
        return self

    def transformer(self, **options: Any) -> Transformer:
        """Build the stack; `options` are further arguments of `Transformer`."""
        own = {"activation": self.activation, "checkpointing": self.checkpointing, "residual": self.residual}
        return self.blocks(self.width, **own, **options)


def pick_tokens(x: Tensor, pick: PickedToken) -> Tensor:
    """Gather one token of each sample: [B, T, D] -> [B, 1, D]; packed [N, D] -> [B, D]."""
    if isinstance(pick, int):
        return x[:, pick : pick + 1]
    if x.ndim == 2:
        return x[pick]
    # Not take_along_dim, with which torch.compile treats T as a constant.
    return x.gather(1, pick[:, None, None].expand(-1, 1, x.shape[2]))
