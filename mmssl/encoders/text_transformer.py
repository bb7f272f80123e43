"""The text transformer of CLIP (arXiv:2103.00020, section 2.4)."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.open_clip_names import to_open_clip
from mmssl.encoders.packing import Packing
from mmssl.encoders.token_masking import TokenMasking, mask_tokens
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weights import State, finish

STEP = 8
"""Lengths that texts are trimmed to are multiples of it."""

Replace = tuple[Tensor, Tensor] | None

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


class TextTransformerConfig(TransformerConfig):
    """Settings of a text transformer; the defaults are CLIP's beside ViT-B.

    Attributes:
        vocab_size: number of token ids. The end-of-text id must be the largest that occurs, as in CLIP's tokenizer.
        context_length: most tokens of a text.
        pool: "eot" takes the end-of-text token, "mean" the mean of all tokens up to it.
        causal: tokens see only those before them, as in CLIP; false: all tokens up to the end of the text.
        layer_scale: initial factor of each residual branch; None: none.
        keep_tokens: most tokens of a text in training, first and end among them; longer texts lose words. Cheaper, and another
            objective than with whole texts: train on those at the end. None: all of them.
        masking: which words stay then, see `mask_tokens`.
    """

    kind: Literal["text_transformer"] = "text_transformer"
    vocab_size: int = Field(default=49408, gt=0)
    context_length: int = Field(default=77, gt=0)
    width: int = Field(default=512, gt=0)
    heads: int = Field(default=8, gt=0)
    pool: Literal["eot", "mean"] = "eot"
    causal: bool = True
    layer_scale: float | None = None
    keep_tokens: int | None = Field(default=None, ge=3)
    masking: TokenMasking = "block"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.keep_tokens is not None and self.keep_tokens >= self.context_length:
            raise ValueError(
                f"keep_tokens {self.keep_tokens} has no effect on texts of at most {self.context_length} tokens (context_length): "
                "lower it, or leave it out"
            )
        if self.keep_tokens is None and self.masking != "block":
            raise ValueError(f"masking: {self.masking} has no effect without keep_tokens: set it, or leave masking out")
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


def trim_padding(ids: Tensor) -> Tensor:
    """Ids [B, T] up to the longest text, which ends at its largest id, rounded up to `STEP`: devices like few different sizes."""
    if not len(ids):
        return ids
    longest = int(ids.argmax(dim=1).max()) + 1
    return ids[:, : -(-longest // STEP) * STEP]


class TextTransformer(Encoder):
    """Token ids [B, T] -> pooled [B, D] and tokens [B, T, D], both after the final norm; tokens past the end are zero.

    A text ends at its largest id (CLIP's end-of-text id, whose first occurrence counts); what stands behind it is padding and
    has no influence, so the padding id may be any smaller one. Every parameter gets a gradient from `pooled`, except rows of
    the embedding tables that the batch does not use.
    """

    capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE})
    grid: tuple[int]
    trim = staticmethod(trim_padding)

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.width = config.width
        self.grid = (config.context_length,)
        self.token_ids = TokenIds(config.context_length, config.vocab_size)
        self.pool = config.pool
        self.causal = config.causal
        self.keep_tokens = config.keep_tokens
        self.masking: TokenMasking = config.masking
        self.token_embedding = nn.Embedding(config.vocab_size, self.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, self.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.blocks = config.transformer(causal=config.causal, layer_scale=config.layer_scale)
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
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`.

        On the CPU all layers see real tokens only (see `Packing`), elsewhere texts are padded to T: call `trim` before a batch is
        moved. All of this is exact, as padding has no influence. In training, `keep_tokens` leaves words out, unless `replace`
        names tokens by their places.

        Raises:
            ValueError: `keep` is given, or `x` are not ids (see `prepare`).
        """
        if keep is not None:
            raise ValueError("a text transformer cannot drop tokens (no capability mask_drop); replace them instead")
        ids = self.prepare(x)
        if self.training and self.keep_tokens is not None and replace is None:
            ids = mask_tokens(ids, self.keep_tokens, self.masking)
        end = ids.argmax(dim=1)  # [B], position of the end-of-text id
        if _on_cpu(ids):
            return self._packed(ids, Packing.of(end + 1), replace, pooled_only)
        return self._padded(ids, end, replace, pooled_only)

    def _packed(self, ids: Tensor, packing: Packing, replace: Replace, pooled_only: bool) -> Features:
        places = torch.arange(packing.real.shape[1], device=ids.device).expand_as(packing.real)[packing.real]
        x = self.token_embedding(packing.pack(ids))  # [N, D]
        if replace is not None:
            mask, value = replace
            value = value.to(x.dtype).expand(*ids.shape, self.width)
            x = torch.where(packing.pack(mask)[:, None], packing.pack(value), x)
        # Not `positional_embedding[places]`: on a CPU its gradient is summed by atomic additions, in whatever order threads come.
        x = x + F.embedding(places, self.positional_embedding)
        if pooled_only and self.pool == "eot":
            x, _ = self.blocks(x, packing=packing, pick=packing.last)
            return Features(packing.restore(self.norm_final(x)))
        x, _ = self.blocks(x, packing=packing)
        x = self.norm_final(x)
        pooled = packing.restore(x[packing.last] if self.pool == "eot" else packing.means(x))
        return Features(pooled) if pooled_only else Features(pooled, packing.unpack(x, ids.shape[1]), (ids.shape[1],))

    def _padded(self, ids: Tensor, end: Tensor, replace: Replace, pooled_only: bool) -> Features:
        x = self.token_embedding(ids)  # [B, T, D]
        if replace is not None:
            hidden, value = replace
            x = torch.where(hidden[..., None], value.to(x.dtype), x)
        x = x + self.positional_embedding[: ids.shape[1]]
        real = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]  # [B, T]
        # Causal attention of real tokens never reaches padding; the other kind needs to be told.
        mask = None if self.causal else real[:, None, None, :]
        if pooled_only and self.pool == "eot":
            x, _ = self.blocks(x, mask, pick=end)
            return Features(self.norm_final(x)[:, 0])
        x, _ = self.blocks(x, mask)
        x = self.norm_final(x) * real[..., None]
        rows = torch.arange(ids.shape[0], device=ids.device)
        pooled = x[rows, end] if self.pool == "eot" else x.sum(1) / (end[:, None] + 1)
        return Features(pooled, x, (ids.shape[1],))

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
