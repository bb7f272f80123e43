"""The text transformer of CLIP (arXiv:2103.00020, section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.compat import is_compiled
from mmssl.core.encoder import Encoder, Features
from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.open_clip_names import to_open_clip_name
from mmssl.encoders.adapters.transformers_names import two_towers_to_open_clip
from mmssl.encoders.attend import takes_ragged
from mmssl.encoders.norms import USUAL_EPS, set_epsilon
from mmssl.encoders.packing import Packing, RaggedPacking, SortedPacking
from mmssl.encoders.positions import fit_length
from mmssl.encoders.token_masking import TokenMasking, mask_tokens
from mmssl.encoders.transformer import TransformerConfig
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze

STEP = 8
"""Texts are trimmed to a multiple of this number of tokens."""

Replace = tuple[Tensor, Tensor] | None
Layers = tuple[int, bool]
"""Number of the last blocks that are read, and whether of their mlps."""

# Names of a whole CLIP checkpoint that are not the text tower's, where the text tower has no prefix.
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
    """Settings of CLIP's text transformer; the defaults are those of CLIP with ViT-B.

    Attributes:
        vocab_size: number of token ids. The end-of-text id must be the largest that occurs, as in CLIP's tokenizer.
        context_length: largest number of tokens of a text.
        pool: "eot" takes the end-of-text token, "mean" the mean of all tokens including it.
        causal: causal attention, as in CLIP; false: each token attends to all tokens of its text.
        layer_scale: initial factor of each residual branch (LayerScale); None: no such factor.
        norm_eps: what layer norms add to the variance; ImageBind: 1e-6.
        keep_tokens: largest number of tokens of a text in training, first and end included; longer texts lose words. Cheaper, but
            it changes the objective: train the last steps with all tokens. None: all tokens.
        masking: which words `keep_tokens` keeps; see `mask_tokens`.
    """

    kind: Literal["text_transformer"] = "text_transformer"
    vocab_size: int = Field(default=49408, gt=0)
    context_length: int = Field(default=77, gt=0)
    width: int = Field(default=512, gt=0)
    heads: int = Field(default=8, gt=0)
    pool: Literal["eot", "mean"] = "eot"
    causal: bool = True
    layer_scale: float | None = None
    norm_eps: float = Field(default=USUAL_EPS, gt=0)
    keep_tokens: int | None = Field(default=None, ge=3)
    masking: TokenMasking = "block"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.keep_tokens is not None and self.keep_tokens >= self.context_length:
            raise ValueError(
                f"keep_tokens: got {self.keep_tokens}, wanted less than context_length ({self.context_length}), or it has no "
                "effect; lower it, or leave it out"
            )
        if self.keep_tokens is None and self.masking != "block":
            raise ValueError(
                f"masking: got {self.masking} without keep_tokens, which has no effect; set keep_tokens, or leave masking out"
            )
        return self

    def build(self) -> TextTransformer:
        """Build it, load `weights` (own, open_clip's or transformers' CLIP, ImageBind; positions fitted to this length), freeze."""
        encoder = TextTransformer(self)
        load_and_freeze(
            encoder,
            self,
            alias=to_open_clip_name,
            translate=two_towers_to_open_clip,
            ignore=_BESIDE,
            adapt=self._fit_positions,
        )
        return encoder

    def _fit_positions(self, state: State) -> None:
        if "positional_embedding" in state:
            state["positional_embedding"] = fit_length(state["positional_embedding"], self.context_length)


def trim_padding(ids: Tensor) -> Tensor:
    """Cut padding off token ids [B, T] after the longest text, rounded up to `STEP` (few shapes); a text ends at its largest id."""
    if not len(ids):
        return ids
    longest = int(token_counts(ids).max())
    return ids[:, : -(-longest // STEP) * STEP]


def token_counts(ids: Tensor) -> Tensor:
    """Number of real tokens of each text, [B], of ids [B, T]: those up to its largest id."""
    return ids.argmax(dim=1) + 1


class TextTransformer(Encoder):
    """CLIP's text transformer: token ids [B, T] -> pooled [B, D] and tokens [B, T, D], after the final norm.

    A text ends at its largest id (CLIP's end-of-text id, whose first occurrence counts). All ids after it are padding and have no
    influence, so the padding id may be any smaller one; tokens and hidden layers are zero there. Every parameter gets a gradient
    from `pooled`, except rows of the embedding tables that the batch does not use.
    """

    grid: tuple[int]
    trim = staticmethod(trim_padding)
    token_counts = staticmethod(token_counts)

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.width, self.depth = config.width, config.depth
        self.head_width = config.width // config.heads
        self.grid = (config.context_length,)
        self.token_ids = TokenIds(config.context_length, config.vocab_size)
        self.pool = config.pool
        self.causal = config.causal
        self.capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE, Encoder.HIDDEN, Encoder.MLPS})
        if not config.causal:
            self.capabilities |= {Encoder.BIDIRECTIONAL}
        self.keep_tokens = config.keep_tokens
        self.masking: TokenMasking = config.masking
        self.token_embedding = nn.Embedding(config.vocab_size, self.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, self.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.blocks = config.transformer(causal=config.causal, layer_scale=config.layer_scale)
        self.norm_final = nn.LayerNorm(self.width)
        set_epsilon(self, config.norm_eps)

    def prepare(self, x: Tensor) -> Tensor:
        """Ids [B, T] as they are.

        Raises:
            ValueError: `x` is not token ids, has too many, or (checked on the CPU only) has ids outside the vocabulary.
        """
        if x.ndim != 2 or x.is_floating_point() or x.shape[1] > self.grid[0]:
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted token ids int64 [B, T], with T at most {self.grid[0]}"
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
        hidden: int = 0,
        pooled_only: bool = False,
        mlps: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> Features:
        """See `Encoder.forward`.

        On the CPU all layers work on real tokens only (see `Packing`), and so they do on CUDA in bfloat16 and float16, if the host
        knows the `lengths`. Elsewhere, and in compiled blocks, texts are padded to T: call `trim` before a batch is moved. All of
        it is exact, as padding has no influence. In training, `keep_tokens` drops words, unless `replace` names tokens by their
        places.

        Raises:
            ValueError: `keep` is given, `hidden` is above the depth, or `x` is not token ids (see `prepare`).
        """
        self.check_hidden(hidden)
        if keep is not None:
            raise ValueError(
                "got keep, and a text transformer cannot drop tokens (no capability mask_drop); use replace instead"
            )
        ids = self.prepare(x)
        if self.training and self.keep_tokens is not None and replace is None:
            ids = mask_tokens(ids, self.keep_tokens, self.masking)
            lengths = lengths and [min(length, self.keep_tokens) for length in lengths]
        counts, layers = token_counts(ids), (hidden, mlps)
        if not is_compiled(self.blocks[0]):  # which would be compiled anew for every set of lengths
            if _on_cpu(ids):
                return self._packed(ids, SortedPacking.of(counts), replace, layers, pooled_only)
            if lengths and takes_ragged(ids.device, self.positional_embedding.dtype, self.head_width):
                return self._packed(ids, RaggedPacking.of(counts, lengths), replace, layers, pooled_only)
        return self._padded(ids, counts - 1, replace, layers, pooled_only)

    def _packed(self, ids: Tensor, packing: Packing, replace: Replace, layers: Layers, pooled_only: bool) -> Features:
        x = self.token_embedding(packing.pack(ids))  # [N, D]
        if replace is not None:
            mask, value = replace
            value = value.to(x.dtype).expand(*ids.shape, self.width)
            x = torch.where(packing.pack(mask)[:, None], packing.pack(value), x)
        # Not `positional_embedding[positions]`: on a CPU its gradient is summed by atomic additions, in random order.
        x = x + F.embedding(packing.positions, self.positional_embedding)
        if pooled_only and self.pool == "eot" and not layers[0]:
            x, _ = self.blocks(x, packing=packing, pick=packing.last)
            return Features(packing.restore(self.norm_final(x)))
        x, states = self.blocks(x, packing=packing, hidden=layers[0], mlps=layers[1])
        states = tuple(packing.unpack(state, ids.shape[1]) for state in states)
        x = self.norm_final(x)
        pooled = packing.restore(x[packing.last] if self.pool == "eot" else packing.means(x))
        if pooled_only:
            return Features(pooled, hidden=states or None)
        return Features(pooled, packing.unpack(x, ids.shape[1]), (ids.shape[1],), states or None)

    def _padded(self, ids: Tensor, end: Tensor, replace: Replace, layers: Layers, pooled_only: bool) -> Features:
        x = self.token_embedding(ids)  # [B, T, D]
        if replace is not None:
            masked, value = replace
            x = torch.where(masked[..., None], value.to(x.dtype), x)
        x = x + self.positional_embedding[: ids.shape[1]]
        real = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]  # [B, T]
        # Causal attention of real tokens never reaches padding; bidirectional attention needs a mask.
        mask = None if self.causal else real[:, None, None, :]
        if pooled_only and self.pool == "eot" and not layers[0]:
            x, _ = self.blocks(x, mask, pick=end)
            return Features(self.norm_final(x)[:, 0])
        x, states = self.blocks(x, mask, hidden=layers[0], mlps=layers[1])
        x, states = self.norm_final(x) * real[..., None], tuple(state * real[..., None] for state in states)
        rows = torch.arange(ids.shape[0], device=ids.device)
        pooled = x[rows, end] if self.pool == "eot" else x.sum(1) / (end[:, None] + 1)
        return Features(pooled, x, (ids.shape[1],), states or None)

    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: embeddings; each block; the final norm."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [
            [*self.token_embedding.parameters(), self.positional_embedding],
            *blocks,
            list(self.norm_final.parameters()),
        ]


def _on_cpu(x: Tensor) -> bool:
    # On a GPU the host would wait for the values; in a traced graph they would become constants.
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
