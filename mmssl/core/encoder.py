"""The encoder protocol, and the embedding model (encoders and heads) that training leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core.config import Config, LocalPath
from mmssl.core.input_spec import InputSpec
from mmssl.core.sample import TokenIds
from mmssl.core.start import Start


@dataclass(frozen=True)
class Features:
    """The output of an encoder for B inputs: pooled vector, tokens and hidden states.

    Attributes:
        pooled: [B, D], one vector a sample, before any head.
        tokens: [B, T, D] or None, content tokens in reading order, without class or other prefix tokens.
        grid: shape that the T tokens had before flattening, e.g. (rows, columns); None if tokens were dropped or have none.
        hidden: K tensors [B, T, D] or None, the outputs of the last K blocks from early to late, as they leave the block, before
            the final norm; or those of their mlps, before they are added. Content tokens only: row i of each belongs to the token
            that is row i of `tokens`; zero at padding.
        embedded: [B, T, D] or None, embedded content tokens before masks, positions and blocks: each knows its own input alone.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    grid: tuple[int, ...] | None = None
    hidden: tuple[Tensor, ...] | None = None
    embedded: Tensor | None = None


class Encoder(nn.Module, ABC):
    """One modality's network: raw views in, `Features` out.

    The input is a raw view of the batch (uint8 pixels, token ids, waveforms). On the device, `prepare` turns it into the input of
    the first layer, so normalisation statistics and front-end belong to the encoder.

    Attributes:
        width: D, the size of `pooled` and of each token.
        grid: shape of the token grid of a full-size input; None if there are no tokens.
        depth: number of blocks whose outputs `hidden` may ask for; 0 without the capability "hidden".
        capabilities: subset of {"tokens", "mask_drop", "mask_replace", "hidden", "mlps", "bidirectional", "embedded", "prepared"}:
            gives tokens; accepts `keep`; accepts `replace`; gives the outputs of its last blocks, and those of their mlps; attends
            from each token to all others, those after it too (a causal text transformer does not; a residual network has no
            attention); gives embedded tokens; takes what `prepare` made, and what was changed in it, in place of raw views.
        token_ids: token ids that a text encoder accepts; None: it takes no ids.
        trim: cuts padding that influences no row off the end of a raw view [B, T] of token ids. Called before the view moves to a
            device, because reading its values there would synchronise; None: views are not trimmed.
        token_counts: how many leading ids of each row of such a view [B, T] have influence, [B]; read before the view moves to a
            device, as `trim` is. An encoder that has it takes them in `forward` as `lengths`, B numbers; None: it has not.
        start: where its initial weights come from; None: they are random.
    """

    TOKENS: ClassVar[str] = "tokens"
    MASK_DROP: ClassVar[str] = "mask_drop"
    MASK_REPLACE: ClassVar[str] = "mask_replace"
    HIDDEN: ClassVar[str] = "hidden"
    MLPS: ClassVar[str] = "mlps"
    BIDIRECTIONAL: ClassVar[str] = "bidirectional"
    EMBEDDED: ClassVar[str] = "embedded"
    PREPARED: ClassVar[str] = "prepared"

    width: int
    grid: tuple[int, ...] | None = None
    depth: int = 0
    capabilities: frozenset[str] = frozenset()
    token_ids: TokenIds | None = None
    trim: Callable[[Tensor], Tensor] | None = None
    token_counts: Callable[[Tensor], Tensor] | None = None
    start: Start | None = None

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Turn a raw view [B, ...] into the tensor that the first layer sees: normalised pixels, a spectrogram, ids as they are.

        Deterministic, in training too: masked objectives predict it. Augmentation is for `forward` alone.
        """

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """Encode raw views.

        `keep` and `replace` name tokens by their positions among all T. An encoder that drops tokens itself in training (patch
        dropout, keep_tokens) does so only in calls without them.

        Args:
            x: [B, ...] raw view; prepared inside.
            keep: [B, T_keep] int64, positions of the content tokens that are encoded; the others are dropped after the
                position embedding, before the first block. Needs the capability "mask_drop".
            replace: (mask [B, T] bool, value broadcastable to [B, T, D]): embedded content tokens under the mask are replaced
                by the value before the position embedding is added. Needs the capability "mask_replace".
            hidden: K, number of last blocks whose outputs are returned as `Features.hidden`. Needs the capability "hidden". An
                encoder with the capability "mlps" accepts `mlps`, too: True returns what the mlps of these blocks add instead.
            pooled_only: the caller reads only `pooled`, and `hidden` if it asks for that: an encoder may skip work that only
                `tokens` need (the same `pooled` up to rounding; `tokens` may be None). Every encoder accepts it; some ignore it.

        Raises:
            ValueError: `hidden` is above `depth`.
        """

    @final
    def check_hidden(self, hidden: int) -> None:
        """Refuse a number of hidden layers that this encoder cannot return; `forward` calls it first.

        Raises:
            ValueError: `hidden` is negative or above `depth`.
        """
        if not 0 <= hidden <= self.depth:
            wanted = f"0 to {self.depth}, the depth of" if self.depth else "0: there are no hidden layers in"
            raise ValueError(f"hidden: got {hidden}, wanted {wanted} {type(self).__name__}")

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Every parameter once, grouped from the input (first) to the output (last): for layer-wise rates and partial locking."""


class EncoderConfig(Config):
    """Settings that all encoders share: initial weights, frozen or not, unlocked layers.

    Attributes:
        weights: run or checkpoint folder to start from, or a file (safetensors, or a `.pt` state dict, read without pickled code);
            None: from scratch. Of a run it takes the network that the run evaluates: for DINO the teacher.
        place: prefix of this encoder's tensor names in that file, such as "encoders.image."; None: found by matching, which must
            give one prefix.
        partial: take from the file what fits; tensors that it lacks, or has in another shape, start at random. They are listed.
        frozen: keep the whole encoder as it is: no gradient, evaluation mode (LiT's locked tower).
        unlocked_layers: with `frozen`, number of last layer groups that are still trained.
    """

    weights: LocalPath | None = None
    place: str | None = None
    partial: bool = False
    frozen: bool = False
    unlocked_layers: int = 0

    @property
    def pretrained(self) -> bool:
        """Whether the encoder, or one inside it, starts from weights that its config names."""
        return self.weights is not None or any(
            value.pretrained for _, value in self if isinstance(value, EncoderConfig)
        )

    def wants(self) -> InputSpec:
        """Size, rate and tokenizer that the views of its modality must have."""
        return InputSpec()

    def mistakes(self) -> Iterator[str]:
        """Settings that no new run should begin with: the key, what was got, what follows, and what to set. By default none."""
        yield from ()

    def warnings(self, views: InputSpec) -> Iterator[str]:
        """What the encoder fills up or cuts off of views that it takes: key, what was got, what follows. By default nothing."""
        yield from ()


def freeze(encoder: Encoder, unlocked_layers: int = 0) -> None:
    """Freeze all parameters except those of the last `unlocked_layers` groups.

    Raises:
        ValueError: the encoder has fewer groups.
    """
    groups = encoder.layers()
    if not 0 <= unlocked_layers <= len(groups):
        raise ValueError(
            f"got unlocked_layers {unlocked_layers}, wanted 0 to {len(groups)}, the encoder's layer groups"
        )
    for group in groups[: len(groups) - unlocked_layers]:
        for parameter in group:
            parameter.requires_grad_(False)


TowerPrecision = Literal["float32", "bf16"]


class EmbeddingModel(nn.Module):
    """Encoders and the heads that lead into a shared space: the part of a trained model that evaluators, embedding and export use.

    Args:
        encoders: modality -> encoder.
        heads: modality -> head into the shared space; empty for objectives that have none.
        logit_scales: pair of modalities -> trained logit scale of their cosines, 1 / temperature; None: there is none.

    Attributes:
        precision: in which the encoders compute: "float32", or "bf16" by autocast. What follows them is float32 in both.
    """

    precision: TowerPrecision = "float32"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        logit_scales: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict(heads)
        self.logit_scales = dict(logit_scales or {})

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def require(self, modality: str, *, shared_space: bool) -> None:
        """Raise an error if the encoder or head of a modality is missing, before work begins.

        Raises:
            ValueError: no encoder for the modality, or no head into a shared space where one is asked for.
        """
        if modality not in self.encoders:
            raise ValueError(f"no encoder for {modality!r}: this model has {sorted(self.encoders)}")
        if shared_space and modality not in self.heads:
            raise ValueError(
                f"no shared space for {modality!r}: this model was trained with heads for {sorted(self.heads) or 'no modality'}; "
                "comparing modalities needs an objective that aligns them. Features need no shared space: `Model.features`, or "
                "`mmssl embed --features`"
            )

    def logit_scale(self, a: str, b: str) -> float | None:
        """Trained logit scale of the cosines of two modalities, named in any order; None: there is none."""
        return self.logit_scales.get((a, b), self.logit_scales.get((b, a)))

    def features(self, modality: str, x: Tensor) -> Tensor:
        """Pooled encoder features [B, D] of raw views [B, ...], float32, before any head: the input of linear probes.

        Views may be on the CPU: they are trimmed where the encoder allows it, and moved.
        """
        self.require(modality, shared_space=False)
        return self._pooled(modality, x).float()

    def embed(self, modality: str, x: Tensor) -> Tensor:
        """Unit-norm embeddings [B, E] of raw views [B, ...] (on any device) in the shared space, float32.

        Raises:
            ValueError: the objective that trained this model has no shared space for the modality.
        """
        return self.features_and_embeddings(modality, x)[1]

    def features_and_embeddings(self, modality: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """`features` [B, D] and `embed` [B, E] of the same views, from one pass of the encoder.

        Raises:
            ValueError: as of `embed`.
        """
        self.require(modality, shared_space=True)
        pooled = self._pooled(modality, x)
        return pooled.float(), F.normalize(self.heads[modality](pooled).float(), dim=-1)

    def _pooled(self, modality: str, x: Tensor) -> Tensor:
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        if encoder.trim is not None and x.device.type == "cpu":
            x = encoder.trim(x)
        x = x.to(self.device, non_blocking=self.device.type == "cuda")
        if self.precision == "float32":
            features: Features = encoder(x, pooled_only=True)
            return features.pooled
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            features = encoder(x, pooled_only=True)
        return features.pooled.float()
