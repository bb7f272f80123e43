"""Text: caption files to tuples of captions, captions to token ids."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.data.modalities.text_augment import WordOperation, WordsConfig, draw_words, take_words
from mmssl.data.modalities.tokenizers import ClipTokenizerConfig, Tokenizer, TokenizerConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View
from mmssl.data.timeline import Window

CaptionFormat = Literal["whole", "lines", "list"] | dict[str, Annotated[float, Field(gt=0)]]


class Captions(tuple[str, ...]):
    """All captions of a sample, none of them empty.

    Attributes:
        weights: how often each is drawn, relative to the others.
    """

    weights: tuple[float, ...]

    def __new__(cls, texts: Sequence[str], weights: Sequence[float] | None = None) -> Captions:
        self = super().__new__(cls, texts)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.weights


class TextModality(Modality):
    """Captions.

    Args:
        captions: how a member holds them; see `TextConfig`.
        tokenizer: turns them into ids.
        augment: what is done to captions in the view "tokens".
    """

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        captions: CaptionFormat,
        tokenizer: Tokenizer,
        augment: Sequence[WordsConfig] = (),
    ) -> None:
        super().__init__(name, extensions, {"tokens": TokensView(tokenizer, augment), "eval": AllTokensView(tokenizer)})
        self.captions = captions
        self.tokenizer = tokenizer

    def extent(self, data: bytes, extension: str) -> None:
        """None: a caption has no time axis."""

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> Captions:
        """All captions of a member.

        Raises:
            DecodeError: "undecodable" (not UTF-8, not the expected JSON), "missing" (no caption in it).
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DecodeError("undecodable", f".{extension} is not UTF-8: {error}") from error
        if self.captions == "whole":
            captions = Captions([text.strip()] if text.strip() else [])
        elif self.captions == "lines":
            captions = Captions([line.strip() for line in text.splitlines() if line.strip()])
        else:
            captions = _from_json(text, extension, self.captions)
        if not captions:
            raise DecodeError("missing", f".{extension} holds no caption")
        return captions

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, T] int64 of n texts, such as prompts."""
        return self.tokenizer(texts)


class TextConfig(ModalityConfig):
    """Captions.

    Attributes:
        tokenizer: which one.
        captions: "whole": a member is one caption; "lines": one a line; "list": a JSON list of captions; or {key: weight}: a JSON
            object, of which these keys are read (each a caption or a list of them; keys that a sample lacks are left out) and
            drawn in proportion to their weights.
        augment: what is done to the caption in the view "tokens", in this order: swap, delete or repeat words, or take a span.
            The view "eval" has captions as they are.
        extensions: default `txt`, and `json` where JSON is read.
    """

    kind: Literal["text"] = "text"
    tokenizer: TokenizerConfig = ClipTokenizerConfig()
    captions: CaptionFormat = "whole"
    augment: tuple[WordOperation, ...] = ()

    @field_validator("captions")
    @classmethod
    def _some(cls, captions: CaptionFormat) -> CaptionFormat:
        if captions == {}:
            raise ValueError("got no key, wanted {key: weight} with at least one, or 'whole', 'lines' or 'list'")
        return captions

    def build(self, name: str) -> TextModality:
        """The modality under the name that the recipe gives it."""
        usual = ("txt",) if self.captions in ("whole", "lines") else ("json",)
        return TextModality(name, self.extensions or usual, self.captions, self.tokenizer.build(), self.augment)


class TokensView(View):
    """int64 [T], ids of one caption drawn by weight. Parameters: caption, its number; words, see `draw_words`, if it is changed."""

    def __init__(self, tokenizer: Tokenizer, augment: Sequence[WordsConfig] = ()) -> None:
        self.tokenizer = tokenizer
        self.augment = tuple(augment)

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Which caption, and what becomes of it."""
        bounds = list(accumulate(value.weights))
        caption = min(bisect_right(bounds, rng.random() * bounds[-1]), len(value) - 1)
        words = draw_words(value[caption], self.augment, rng)
        return {"caption": caption} if words is None else {"caption": caption, "words": words}

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Ids of that caption."""
        text = value[parameters["caption"]]
        if "words" in parameters:
            text = take_words(text, parameters["words"])
        return self.tokenizer([text])[0]

    def blank(self) -> Tensor:
        """The ids of an empty text: start and end."""
        return self.tokenizer([""])[0]


class AllTokensView(View):
    """int64 [K, T], ids of all K captions in their order."""

    ragged = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing: all are taken."""
        return {}

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Ids of all captions."""
        return self.tokenizer(value)

    def blank(self) -> Tensor:
        """No caption."""
        return torch.zeros(0, self.tokenizer.context_length, dtype=torch.int64)


def _from_json(text: str, extension: str, captions: CaptionFormat) -> Captions:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("undecodable", f".{extension} is not JSON: {error}") from error
    if captions == "list":
        if not isinstance(value, list):
            raise DecodeError(
                "undecodable", f".{extension} holds JSON of type {type(value).__name__}, wanted a list of captions"
            )
        return Captions(_texts(value, extension))
    assert isinstance(captions, dict)
    if not isinstance(value, dict):
        raise DecodeError(
            "undecodable",
            f".{extension} holds JSON of type {type(value).__name__}, wanted an object with {sorted(captions)}",
        )
    texts: list[str] = []
    weights: list[float] = []
    for key, weight in captions.items():
        found = _texts(value[key] if isinstance(value.get(key), list) else [value.get(key)], extension)
        texts += found
        weights += [weight / len(found) for _ in found]  # a key keeps its weight, however many captions it has
    return Captions(texts, weights)


def _texts(values: list[Any], extension: str) -> list[str]:
    """The captions among JSON values; null and blanks are none."""
    for value in values:
        if not isinstance(value, str | None):
            raise DecodeError(
                "undecodable", f".{extension} has {str(value)[:40]!r} where a caption should be, wanted a string"
            )
    return [value.strip() for value in values if value and value.strip()]
