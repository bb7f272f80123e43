"""Pre-norm transformer blocks, shared by every own transformer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Activation = Literal["gelu", "quick_gelu"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        # The same function written with silu keeps one tensor for backward instead of two.
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class DropPath(nn.Module):
    """Stochastic depth: zeroes a residual branch for a sample with probability `rate` in training (arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], of equal expectation."""
        if self.rate == 0 or not self.training:
            return x
        kept = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(kept) / kept

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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. `mask` is bool, broadcastable to [B, heads, T, T], True where attention is allowed."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers and an activation."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); each branch may be scaled and dropped."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        activation: Activation,
        causal: bool,
        layer_scale: float | None,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), activation)
        scale = None if layer_scale is None else torch.full((width,), layer_scale)
        self.scale1 = None if scale is None else nn.Parameter(scale.clone())
        self.scale2 = None if scale is None else nn.Parameter(scale.clone())
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self._branch(self.attention(self.norm1(x), mask), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _branch(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = self.dropout(x)
        return self.drop_path(x if scale is None else x * scale)  # type: ignore[no-any-return]


class Transformer(nn.ModuleList):
    """A stack of blocks.

    Initialised as open_clip does its text tower: normal, of standard deviation D^-0.5 for queries, keys and values,
    (2 D)^-0.5 for the first layer of each mlp, and D^-0.5 (2 depth)^-0.5 for the two layers that write into the residual
    stream, so that the stream's size does not grow with depth. Attention biases start at 0, mlp biases as torch has them.

    Args:
        width: D.
        depth: number of blocks.
        heads: attention heads of each block; divides D.
        mlp_ratio: width of the mlp in units of D.
        activation: "gelu" (exact) or "quick_gelu".
        causal: each token sees itself and those before it.
        layer_scale: initial factor of each branch (arXiv:2103.17239); None: no such parameter.
        drop_path: probability of dropping a branch in the last block; grows linearly from 0 in the first.
        dropout: of each branch's output.
        checkpointing: recompute each block in backward instead of keeping its activations.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        causal: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
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
            )
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.mlp.up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.down.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.zeros_(block.attention.qkv.bias)
            nn.init.zeros_(block.attention.out.bias)
            self.append(block)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, hidden: int = 0) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all blocks.

        Args:
            x: [B, T, D].
            mask: bool, broadcastable to [B, heads, T, T], True where attention is allowed; None for all (or causal).
            hidden: how many of the last block outputs to hand back.

        Returns:
            The output [B, T, D], and the last `hidden` block outputs from early to late, the output among them.
        """
        outputs = []
        for number, block in enumerate(self):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
            if number >= len(self) - hidden:
                outputs.append(x)
        return x, tuple(outputs)
