"""Text views: captions to token ids int64 [T], of parts of them [P, T]; permutations of the places of tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.masks.order import TokenOrder
from mmssl.data.modalities.tokenizers import Tokenizer
from mmssl.data.modalities.views.text_augment import WordOperation, WordsConfig, draw_words, first_words, take_words
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor


class TokensViewConfig(Config):
    """Token ids of one caption, drawn by weight for each view by itself.

    Attributes:
        augment: augmentations of the caption, in this order: swap, delete or repeat words, take a span, or permute sentences.
    """

    kind: Literal["tokens"] = "tokens"
    augment: tuple[WordOperation, ...] = ()

    def build(self, tokens: TokensView) -> TokensView:
        """Build the view, with the tokenizer of the view "tokens"."""
        return TokensView(tokens.tokenizer, self.augment)


class TokenOrderViewConfig(Config):
    """Random permutation of the places of a text, for masked language modelling (MLM), which hides the first real words of it.

    The permutation is over the whole context length, so that it does not depend on the drawn caption, and it is never trimmed.
    """

    kind: Literal["words"] = "words"

    def build(self, tokens: TokensView) -> TokenOrder:
        """Build the view for the context length of the view "tokens"."""
        return TokenOrder(tokens.tokenizer.context_length)


class PartsViewConfig(Config):
    """Consecutive parts of one caption or longer text, each as a text of its own, for contrastive predictive coding (CPC).

    Attributes:
        parts: P, number of parts.
        words: largest number of words of a part. Longer texts are read from a word that is drawn; shorter ones have shorter parts.
    """

    kind: Literal["parts"] = "parts"
    parts: int = Field(ge=2)
    words: int = Field(ge=1)

    def build(self, tokens: TokensView) -> PartsView:
        """Build the view, with the tokenizer of the view "tokens"."""
        return PartsView(tokens, self.parts, self.words)


class TokensView(View):
    """Token ids of one caption drawn by weight, int64 [T]. Parameters: caption (number); words (`draw_words`), if augmented."""

    trimmable = True

    def __init__(self, tokenizer: Tokenizer, augment: Sequence[WordsConfig] = ()) -> None:
        self.tokenizer = tokenizer
        self.augment = tuple(augment)

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the caption and its augmentation."""
        bounds = list(accumulate(value.weights))
        caption = min(bisect_right(bounds, rng.random() * bounds[-1]), len(value) - 1)
        words = draw_words(value[caption], self.augment, rng)
        return {"caption": caption} if words is None else {"caption": caption, "words": words}

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Tokenize the drawn caption."""
        text = value[parameters["caption"]]
        if "words" in parameters:
            text = take_words(text, parameters["words"])
        return self.tokenizer([text])[0]

    def blank(self) -> Tensor:
        """Token ids of an empty text: start and end."""
        return self.tokenizer([""])[0]


class PartsView(View):
    """Token ids of consecutive parts of a caption, int64 [P, T]. Parameters: caption (number), start (number of a word)."""

    def __init__(self, tokens: TokensView, parts: int, words: int) -> None:
        self.tokens, self.parts, self.words = tokens, parts, words

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the caption, and the word that the first part begins with."""
        caption = self.tokens.draw(value, rng)["caption"]
        count = len(value[caption].split())
        return {"caption": caption, "start": int(rng.integers(max(0, count - self.parts * self._each(count)) + 1))}

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Tokenize the parts. Of a text of fewer words than parts the last parts are empty texts."""
        words = value[parameters["caption"]].split()
        each = self._each(len(words))
        starts = [parameters["start"] + each * part for part in range(self.parts)]
        return self.tokens.tokenizer([" ".join(words[start : start + each]) for start in starts])

    def blank(self) -> Tensor:
        """Token ids of empty texts: start and end."""
        return self.tokens.tokenizer([""] * self.parts)

    def _each(self, count: int) -> int:
        """Words of a part, of a text of `count` words."""
        return max(1, min(self.words, count // self.parts))


class AllTokensView(View):
    """Token ids of all K captions in their order, int64 [K, T]; of their first words only, if `share` is below 1."""

    ragged = True

    def __init__(self, tokenizer: Tokenizer, share: float = 1.0) -> None:
        self.tokenizer = tokenizer
        self.share = share

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """No parameters: this view is deterministic."""
        return {}

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Tokenize all captions."""
        return self.tokenizer(value if self.share == 1 else value.map(lambda text: first_words(text, self.share)))

    def lasting(self, share: float) -> AllTokensView:
        """The view of the first words of each caption, at least one.

        Raises:
            ValueError: a share above 1.
        """
        if share > 1:
            raise ValueError(f"got a length of {share:g}, and captions can only be cut: wanted at most 1")
        return AllTokensView(self.tokenizer, share)

    def blank(self) -> Tensor:
        """No caption: [0, T]."""
        return to_tensor(np.zeros((0, self.tokenizer.context_length), dtype=np.int64))
