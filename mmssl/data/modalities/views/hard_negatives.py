"""Hard negatives of captions as a view: the drawn caption with one word or relation made false (NegCLIP, arXiv:2210.01936)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.captions.order import swap_order
from mmssl.data.modalities.captions.replace import ATTRIBUTES, COLOURS, NUMBERS, add_word, exchange_words, replace_word
from mmssl.data.modalities.captions.sides import swap_sides
from mmssl.data.modalities.views.text import TokensView
from mmssl.data.modalities.views.text_augment import take_words
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

Falsehood = Literal["side", "order", "number", "attribute", "swap", "add", "given"]


class HardNegativeViewConfig(Config):
    """A false caption close to the one in the view "tokens", for `negatives` of a contrastive objective.

    A sample whose caption cannot be made false has the caption itself, which objectives leave out of the negatives. For several
    negatives of a caption, make several views.

    Attributes:
        falsehoods: ways to make a caption false, equally likely among those that it allows: "side" swaps left and right, "order"
            before and after; "number" and "attribute" (colour, size, material, ...) replace a word by another of its kind; "swap"
            exchanges two such words of different things; "add" adds a colour to one that is named; "given" takes a false caption
            of the data (`modalities.text.negatives`).
    """

    kind: Literal["hard_negative"] = "hard_negative"
    falsehoods: tuple[Falsehood, ...] = Field(default=("side", "order", "number", "attribute"), min_length=1)

    def build(self, tokens: TokensView) -> HardNegativeView:
        """Build the view of the captions that the view "tokens" draws."""
        return HardNegativeView(tokens, self.falsehoods)


class HardNegativeView(View):
    """Token ids of a false caption, int64 [T]. Parameters: those of "tokens", and negative (the false caption), if there is one.

    Args:
        tokens: the view with the true caption; the same caption and words are drawn here.
        falsehoods: see `HardNegativeViewConfig`.
    """

    trimmable = True
    draws_as = "tokens"

    def __init__(self, tokens: TokensView, falsehoods: Sequence[Falsehood]) -> None:
        self.tokens = tokens
        self.falsehoods = tuple(falsehoods)

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the caption as "tokens" does, then a false one."""
        drawn = self.tokens.draw(value, rng)
        caption = value[drawn["caption"]]
        found = {kind: one for kind in self.falsehoods if (one := false_caption(kind, caption, value.negatives, rng))}
        if found:
            kind = [*found][int(rng.integers(len(found)))]
            drawn["negative"] = found[kind]
            if kind == "given":
                drawn.pop("words", None)  # places of words in the true caption
        return drawn

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Tokenize the false caption, augmented like the true one; without one, the true caption."""
        if "negative" not in parameters:
            return self.tokens(value, parameters)
        text = parameters["negative"]
        return self.tokens.tokenizer([take_words(text, parameters["words"]) if "words" in parameters else text])[0]

    def blank(self) -> Tensor:
        """Token ids of an empty text."""
        return self.tokens.blank()


def false_caption(kind: Falsehood, caption: str, given: Sequence[str], rng: np.random.Generator) -> str | None:
    """Make a caption false; None: it has nothing of this kind.

    Args:
        kind: see `HardNegativeViewConfig`.
        caption: a true one.
        given: false captions of the data.
        rng: draws the word, or the given one.
    """
    if kind == "given":
        return given[int(rng.integers(len(given)))] if given else None
    if kind in ("number", "attribute"):
        return replace_word(caption, NUMBERS if kind == "number" else ATTRIBUTES, rng)
    if kind == "swap":
        return exchange_words(caption, NUMBERS + ATTRIBUTES, rng)
    if kind == "add":
        return add_word(caption, COLOURS, rng)
    rewritten = swap_sides(caption) if kind == "side" else swap_order(caption)
    return rewritten.text if rewritten.outcome == "swapped" else None
