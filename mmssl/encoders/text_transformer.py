"""The text transformer of CLIP (arXiv:2103.00020, section 2.4)."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, EncoderConfig, Features
from mmssl.encoders.open_clip_names import to_open_clip
from mmssl.encoders.transformer import Activation, Transformer
from mmssl.encoders.weights import State, finish

# What a whole CLIP checkpoint holds beside a text tower whose names stand at its top.
_BESIDE = (
    "visual.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
)


class TextTransformerConfig(EncoderConfig):
    """Settings of a text transformer; the defaults are CLIP's beside ViT-B.

    Attributes:
        vocab_size: number of token ids. The end-of-text id must be the largest that occurs, as in CLIP's tokenizer.
        context_length: most tokens of a text.
        width: D.
        depth: number of blocks.
        heads: attention heads; divides `width`.
        mlp_ratio: width of the mlps in units of D.
        pool: "eot" takes the end-of-text token, "mean" the mean of all tokens up to it.
        causal: tokens see only those before them, as in CLIP; false: all tokens up to the end of the text.
        activation: "gelu", or "quick_gelu" for OpenAI's weights.
        layer_scale: initial factor of each residual branch; None: none.
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        dropout: of each residual branch.
        checkpointing: recompute blocks in backward: less memory, a third more work.
    """

    kind: Literal["text_transformer"] = "text_transformer"
    vocab_size: int = Field(default=49408, gt=0)
    context_length: int = Field(default=77, gt=0)
    width: int = Field(default=512, gt=0)
    depth: int = Field(default=12, gt=0)
    heads: int = Field(default=8, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    pool: Literal["eot", "mean"] = "eot"
    causal: bool = True
    activation: Activation = "gelu"
    layer_scale: float | None = None
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    checkpointing: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def build(self) -> TextTransformer:
        """Build it, load `weights` (own, or a whole open_clip checkpoint; longer position tables are cut), freeze."""
        encoder = TextTransformer(self)
        finish(encoder, self, alias=to_open_clip, ignore=_BESIDE, adapt=self._cut_positions)
        return encoder

    def _cut_positions(self, state: State) -> None:
        # A shorter context uses the first rows as they are. A longer one cannot be made up: the shapes then differ, and say so.
        if "positional_embedding" in state:
            state["positional_embedding"] = state["positional_embedding"][: self.context_length]


class TextTransformer(Encoder):
    """Token ids [B, T] -> pooled [B, D] and tokens [B, T, D], both after the final norm; tokens past the end are zero.

    A text ends at its largest id (CLIP's end-of-text id, whose first occurrence counts); what stands behind it is padding and
    has no influence, so the padding id may be any smaller one. Every parameter gets a gradient from `pooled`, except rows of
    the embedding tables that the batch does not use.
    """

    capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE})
    grid: tuple[int]

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.width = config.width
        self.grid = (config.context_length,)
        self.pool = config.pool
        self.causal = config.causal
        self.token_embedding = nn.Embedding(config.vocab_size, self.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, self.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.blocks = Transformer(
            self.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            activation=config.activation,
            causal=config.causal,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
            dropout=config.dropout,
            checkpointing=config.checkpointing,
        )
        self.norm_final = nn.LayerNorm(self.width)

    def prepare(self, x: Tensor) -> Tensor:
        """Ids [B, T] as they are.

        Raises:
            ValueError: not ids, too many of them, or (seen on the CPU only) ids that the table does not have.
        """
        if x.ndim != 2 or x.is_floating_point() or x.shape[1] > self.grid[0]:
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted token ids int64 [B, T], and at most {self.grid[0]} a text"
            )
        if _on_cpu(x) and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.token_embedding.num_embeddings:
            raise ValueError(
                f"got token ids {int(x.min())} to {int(x.max())}, wanted 0 to {self.token_embedding.num_embeddings - 1}: give the "
                "encoder the vocab_size of the tokenizer"
            )
        return x

    def forward(
        self, x: Tensor, *, keep: Tensor | None = None, replace: tuple[Tensor, Tensor] | None = None
    ) -> Features:
        """See `Encoder.forward`. On the CPU the batch is cut to its longest text: exact, as padding has no influence.

        Raises:
            ValueError: `keep` is given, or `x` are not ids (see `prepare`).
        """
        if keep is not None:
            raise ValueError("a text transformer cannot drop tokens (no capability mask_drop); replace them instead")
        ids = self.prepare(x)
        end = ids.argmax(dim=1)  # [B], position of the end-of-text id
        if _on_cpu(ids) and replace is None:
            ids = ids[:, : int(end.max()) + 1]
        tokens = self.token_embedding(ids)
        if replace is not None:
            mask, value = replace
            tokens = torch.where(mask[..., None], value.to(tokens.dtype), tokens)
        tokens = tokens + self.positional_embedding[: ids.shape[1]]
        real = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]  # [B, T]
        # Causal attention of real tokens never reaches padding; the other kind needs to be told.
        tokens, _ = self.blocks(tokens, None if self.causal else real[:, None, None, :])
        tokens = self.norm_final(tokens) * real[..., None]
        rows = torch.arange(ids.shape[0], device=ids.device)
        pooled = tokens[rows, end] if self.pool == "eot" else tokens.sum(1) / (end[:, None] + 1)
        tokens = F.pad(tokens, (0, 0, 0, x.shape[1] - ids.shape[1]))
        return Features(pooled, tokens, (x.shape[1],))

    def layers(self) -> list[list[nn.Parameter]]:
        """Embeddings; each block; the final norm."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [
            [*self.token_embedding.parameters(), self.positional_embedding],
            *blocks,
            list(self.norm_final.parameters()),
        ]


def _on_cpu(x: Tensor) -> bool:
    # Elsewhere a look at the values would wait for the device; in a traced graph it would fix them.
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
