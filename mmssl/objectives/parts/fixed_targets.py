"""Targets of masked prediction that do not change: words, histograms, features of a frozen encoder, codes of a fixed quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config, Probability
from mmssl.core.encoder import Encoder
from mmssl.losses.hog import histograms_of_gradients
from mmssl.losses.mae import normalise_patches
from mmssl.losses.mfcc import mfcc_of_tokens
from mmssl.objectives.parts.frozen_features import FeatureRowsConfig, FrozenFeatures
from mmssl.objectives.parts.patches import check_token_values, prepared_input, prepared_patches
from mmssl.objectives.parts.quantizers import Centroids, QuantizerConfig, RandomProjection
from mmssl.objectives.parts.word_masks import WordMaskConfig, corrupt_words, mask_words, real_ids


class FixedTargets(nn.Module, ABC):
    """Makes the targets of masked tokens from the very view that the encoder sees, so that crops and flips are in them.

    Attributes:
        classes: whether targets are classes, of `size`, or vectors of `size` values.
        directions: whether only the direction of vectors counts: the error is 1 - cosine, not the squared error.
        size: K or P.
        of_text: whether it reads token ids.
    """

    classes: ClassVar[bool] = True
    directions: ClassVar[bool] = False
    of_text: ClassVar[bool] = False
    size: int

    @property
    def centroids(self) -> Centroids | None:
        """What is fitted to the training samples before the first step; None: nothing."""
        return None

    @abstractmethod
    def forward(self, x: Tensor, encoder: Encoder) -> Tensor:
        """Targets of all tokens of raw views [B, ...]: classes [B, T] int64, or values [B, T, P]; no gradient."""

    def mask(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder sees of `x`: the view, the mask [B, T] of hidden tokens, and that of predicted tokens."""
        return x, given, given

    def features(self, x: Tensor, encoder: Encoder) -> Tensor:
        """The rows [B, T, P] that `centroids` are fitted to."""
        raise NotImplementedError


class WordTargets(FixedTargets):
    """Masked language modelling (MLM): the ids of masked words (BERT)."""

    of_text = True

    def __init__(self, config: WordTargetsConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.size = config, vocabulary

    def forward(self, x: Tensor, encoder: Encoder) -> Tensor:
        """See the base."""
        return x

    def mask(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base; `given` is an order of places [B, L], the view `words`."""
        c = self.config
        chosen = mask_words(given, real_ids(x), c.ratio, c.span)
        ids, hidden = corrupt_words(x, given, chosen, c.random, c.kept)
        return ids, hidden, chosen


class WordTargetsConfig(WordMaskConfig):
    """Ids of masked words: masked language modelling (MLM) of BERT (Devlin et al. 2019, arXiv:1810.04805).

    Attributes:
        random: share of the masked words that are replaced by random words instead of being hidden. BERT: 0.1.
        kept: share of the masked words that the encoder sees. BERT: 0.1.
    """

    kind: Literal["words"] = "words"
    ratio: float = Field(default=0.15, gt=0, lt=1)
    random: Probability = 0.1
    kept: Probability = 0.1

    @model_validator(mode="after")
    def _hides_some(self) -> Self:
        if self.random + self.kept >= 1:
            raise ValueError(
                f"got random {self.random:g} and kept {self.kept:g}, wanted a sum below 1: no word is hidden"
            )
        return self

    def build(self, encoder: Encoder) -> WordTargets:
        """Build them for an encoder of texts."""
        assert encoder.token_ids is not None, "checked at build"
        return WordTargets(self, encoder.token_ids.vocab_size)


class HogTargets(FixedTargets):
    """Histograms of oriented gradients of masked patches (MaskFeat)."""

    classes = False

    def __init__(self, config: HogTargetsConfig) -> None:
        super().__init__()
        self.config, self.size = config, config.values

    @torch.no_grad()
    def forward(self, x: Tensor, encoder: Encoder) -> Tensor:
        """See the base."""
        prepared, patch = prepared_input(encoder, x)
        found = histograms_of_gradients(prepared, patch, self.config.cell, self.config.bins)
        check_token_values("values", self.size, found, prepared, encoder)
        return found


class HogTargetsConfig(Config):
    """Histograms of oriented gradients: MaskFeat (Wei et al. 2022, arXiv:2112.09133), for pictures and spectrograms.

    Attributes:
        values: numbers of a token: bins times channels times cells of a patch; 9 * 3 * 4 = 108 for patches of 16 pixels.
        cell: side of a cell in pixels, a divisor of the patch's. MaskFeat: 8.
        bins: number of angles. MaskFeat: 9.
    """

    kind: Literal["hog"] = "hog"
    values: int = Field(ge=2)
    cell: int = Field(default=8, ge=1)
    bins: int = Field(default=9, ge=2)

    def build(self, encoder: Encoder) -> HogTargets:
        """Build them."""
        return HogTargets(self)


class FeatureTargets(FixedTargets):
    """Directions of the features of a frozen encoder (MVP, EVA)."""

    classes = False
    directions = True

    def __init__(self, frozen: FrozenFeatures) -> None:
        super().__init__()
        self.frozen, self.size = frozen, frozen.values

    def forward(self, x: Tensor, encoder: Encoder) -> Tensor:
        """See the base."""
        found: Tensor = self.frozen(x)
        return found


class FeatureTargetsConfig(FeatureRowsConfig):
    """Features of a frozen encoder by cosine: MVP (Wei et al. 2022, arXiv:2203.05175), EVA (Fang et al. 2022, arXiv:2211.07636).

    There it is the image tower of a CLIP model.
    """

    def build(self, encoder: Encoder) -> FeatureTargets:
        """Build them."""
        return FeatureTargets(self.build_network(encoder))


class CodeTargets(FixedTargets):
    """Classes of masked tokens: the codes that a fixed quantizer gives to rows of the prepared view (BEiT, HuBERT, BEST-RQ).

    Args:
        rows: reads a row of each token.
        quantizer: rows [..., P] -> codes [...].
        size: K.
    """

    def __init__(self, rows: RowsConfig | FrozenFeatures, quantizer: Centroids | RandomProjection, size: int) -> None:
        super().__init__()
        self.rows, self.quantizer, self.size = rows, quantizer, size

    @property
    def centroids(self) -> Centroids | None:
        """The quantizer, if it is one of k-means."""
        return self.quantizer if isinstance(self.quantizer, Centroids) else None

    @torch.no_grad()
    def forward(self, x: Tensor, encoder: Encoder) -> Tensor:
        """See the base."""
        codes: Tensor = self.quantizer(self.features(x, encoder))
        return codes

    @torch.no_grad()
    def features(self, x: Tensor, encoder: Encoder) -> Tensor:
        """See the base."""
        if isinstance(self.rows, FrozenFeatures):
            found: Tensor = self.rows(x)
            return found
        return self.rows.read(x, encoder)


class PatchRowsConfig(Config):
    """The values of a patch of the prepared view: pixels, or a piece of a spectrogram or series.

    Attributes:
        values: P, numbers in a patch, e.g. 3 * 16 * 16 = 768.
        normalise: whether each patch is normalised by its mean and standard deviation, as for pixels.
    """

    kind: Literal["patches"] = "patches"
    values: int = Field(ge=2)
    normalise: bool

    def read(self, x: Tensor, encoder: Encoder) -> Tensor:
        """Rows [B, T, P] of raw views [B, ...]."""
        patches = prepared_patches(encoder, x, self.values)
        return normalise_patches(patches) if self.normalise else patches


class MfccRowsConfig(Config):
    """Mel-frequency cepstral coefficients (MFCC) with their first and second differences, for tokens over time alone (HuBERT).

    Attributes:
        coefficients: number of coefficients; P is three times as many. HuBERT: 13.
    """

    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = Field(default=13, ge=1)

    @property
    def values(self) -> int:
        """P."""
        return 3 * self.coefficients

    def read(self, x: Tensor, encoder: Encoder) -> Tensor:
        """Rows [B, T, P] of raw views [B, ...]."""
        prepared, patch = prepared_input(encoder, x)
        return mfcc_of_tokens(prepared, patch, self.coefficients)


RowsConfig = PatchRowsConfig | MfccRowsConfig


class CodeTargetsConfig(Config):
    """Codes of a fixed quantizer: BEiT-like, HuBERT (its iterations differ in `rows`), BEATs (first iteration), BEST-RQ.

    Attributes:
        rows: what is quantized.
        quantizer: k-means, fitted to the training samples before the first step, or a random projection. The latter suits
            spectrograms; of pixels it learns little.
    """

    kind: Literal["codes"] = "codes"
    rows: RowsConfig | FeatureRowsConfig = Field(discriminator="kind")
    quantizer: QuantizerConfig

    def build(self, encoder: Encoder) -> CodeTargets:
        """Build them."""
        rows = self.rows.build_network(encoder) if isinstance(self.rows, FeatureRowsConfig) else self.rows
        return CodeTargets(rows, self.quantizer.build(rows.values), self.quantizer.codes)


FixedTargetsConfig = Annotated[
    WordTargetsConfig | HogTargetsConfig | FeatureTargetsConfig | CodeTargetsConfig, Field(discriminator="kind")
]
