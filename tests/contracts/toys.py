"""The smallest encoders and batches that honour the protocols: two modalities, tokens, masks; a hundred milliseconds a test."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.text_transformer import TextTransformerConfig

GRID = (4, 4)
TOKENS = 16
PATCH_VALUES = 12
CONTEXT = 10
VOCABULARY = 30
"""Of sentences: ids 28 and 29 mark their start and end."""


class Patches(Encoder):
    """uint8 [B, 3, 8, 8] -> 16 tokens of a 4 x 4 grid through one attention layer; pooled is tanh of their mean.

    There are two hidden layers: before and after the attention; their "mlps" are the embedded tokens, and what attention adds.
    """

    width = 16
    grid = GRID
    depth = 2
    capabilities = frozenset(
        {
            Encoder.TOKENS,
            Encoder.MASK_DROP,
            Encoder.MASK_REPLACE,
            Encoder.HIDDEN,
            Encoder.MLPS,
            Encoder.BIDIRECTIONAL,
            Encoder.EMBEDDED,
        }
    )

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, self.width, 2, 2)
        self.positions = nn.Parameter(torch.randn(TOKENS, self.width) * 0.5)
        self.attend = nn.Linear(self.width, 3 * self.width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(self.width)

    def prepare(self, x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x * 2 - 1

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
        prepared = self.prepare(x).to(self.embed.weight.dtype)
        tokens = embedded = self.embed(prepared).flatten(2).transpose(1, 2)
        if replace is not None:
            tokens = torch.where(replace[0][..., None], replace[1].to(tokens.dtype), tokens)
        tokens = tokens + self.positions
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, self.width))
        query, key, value = self.attend(tokens).chunk(3, -1)
        added = self.dropout(F.scaled_dot_product_attention(query, key, value))
        states = (tokens - self.positions if keep is None else tokens, added) if mlps else (tokens, tokens + added)
        tokens = self.norm(tokens + added)
        # The tanh keeps a head with batch norm from making the shift of the norm a parameter without effect.
        return Features(
            tokens.mean(1).tanh(),
            tokens,
            None if keep is not None else GRID,
            states[-hidden:] if hidden else None,
            embedded,
        )

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.embed.parameters(), self.positions], [*self.attend.parameters()], [*self.norm.parameters()]]


class Words(Encoder):
    """int64 [B, T] -> the mean of their embeddings; no tokens."""

    width = 12

    def __init__(self, vocabulary: int = 30) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, self.width)
        self.out = nn.Linear(self.width, self.width)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        assert keep is None
        assert replace is None
        return Features(self.out(self.embed(x).mean(1).tanh()))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.embed.parameters()], [*self.out.parameters()]]


class Pulses(Encoder):
    """float [B, 2, samples] -> a token for each two samples, which sees its neighbours; pooled is their maximum."""

    width = 12
    grid = (TOKENS,)
    capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE})

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, self.width, 2, 2)
        self.mix = nn.Conv1d(self.width, self.width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        assert keep is None
        tokens = self.embed(x.to(self.embed.weight.dtype))
        if replace is not None:
            tokens = torch.where(replace[0][:, None], replace[1].to(tokens.dtype), tokens)
        tokens = self.dropout(self.mix(tokens.tanh()))
        return Features(tokens.amax(2), tokens.transpose(1, 2), (tokens.shape[2],))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.embed.parameters()], [*self.mix.parameters()]]


def encoders(dropout: float = 0.0, *, all_five: bool = True) -> dict[str, Encoder]:
    """Five modalities: two of patches, one of words without tokens; and one of series and one of sentences with tokens,
    which are left out if not `all_five`."""
    made: dict[str, Encoder] = {"picture": Patches(dropout), "words": Words(), "sound": Patches(dropout)}
    if not all_five:
        return made
    with torch.random.fork_rng(devices=[]):  # what objectives draw after this stays as it is
        return {**made, "pulse": Pulses(dropout), "sentence": sentences(dropout)}


def sentences(dropout: float = 0.0) -> Encoder:
    """A text transformer that attends in both directions."""
    return TextTransformerConfig(
        vocab_size=VOCABULARY, context_length=CONTEXT, width=16, depth=2, heads=2, causal=False, dropout=dropout
    ).build()


def texts(*words: int, seed: int = 0) -> dict[str, Tensor]:
    """Sentences of so many words each, and an order of places."""
    random = torch.Generator().manual_seed(seed)
    start, end = VOCABULARY - 2, VOCABULARY - 1
    ids = torch.zeros(len(words), CONTEXT, dtype=torch.int64)
    for row, n in enumerate(words):
        ids[row, : n + 2] = torch.tensor([start, *torch.randint(1, start, (n,), generator=random).tolist(), end])
    return {"tokens0": ids, "order0": torch.rand(len(words), CONTEXT, generator=random).argsort(1)}


def batch(size: int, seed: int = 0) -> Batch:
    """Random views under every name that the contract configs ask for; of one's own, to be changed."""
    return drawn(size, seed).map(torch.clone)


@cache
def drawn(size: int, seed: int) -> Batch:
    """`batch`, but shared by all who ask."""
    random = torch.Generator().manual_seed(seed)

    def patches() -> Tensor:
        return torch.randint(0, 256, (size, 3, 8, 8), generator=random, dtype=torch.uint8)

    order = torch.rand(size, TOKENS, generator=random).argsort(1)
    rank = order.argsort(1)
    return Batch(
        views={
            "picture": {
                "crop0": patches(),
                "crop1": patches(),
                "order0": order,
                "mask0": rank < 6,
                "mask1": rank >= 10,
                "uneven1": rank < 4 * torch.arange(size)[:, None] % 9,
                "uneven0": rank < 2 + 2 * torch.arange(size)[:, None] % 7,
                "small0": patches(),
                "small1": patches(),
                "places0": torch.stack([rank < 5, (rank >= 8) & (rank < 11), (rank >= 10) & (rank < 13)], 1),
                "long0": torch.stack([rank < 3, rank >= 6], 1),
                "choice0": order[:, 0] % 4,
                "wide0": torch.randint(
                    0, 256, (size, 3, 24, 24), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
                ),
            },
            "words": {"tokens0": torch.randint(0, 30, (size, 5), generator=random)},
            "sound": {"window0": patches(), "order0": rank},
            "pulse": {
                "wave0": torch.randn(size, 2, 2 * TOKENS, generator=random),
                "spread0": torch.rand(size, TOKENS, generator=random) < 0.3,
                "spread1": torch.rand(size, TOKENS, generator=random) < 0.3,
            },
            "sentence": {
                **texts(*(1 + 5 * row % 8 for row in range(size)), seed=seed),
                "parts0": torch.stack(
                    [texts(*[4] * size, seed=100 + 4 * seed + part)["tokens0"] for part in range(4)], 1
                ),
            },
        },
        index=torch.arange(size),
        keys=tuple(str(number) for number in range(size)),
    )
