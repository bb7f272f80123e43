"""Changes of captions in training, word by word: EDA (Wei and Zou 2019, arXiv:1901.11196) and random spans (arXiv:2112.09118).

Each operation only chooses words: an augmented caption is a list of places in the old one, which is the whole record. EDA's
synonyms need a database; a word that is said twice stands in for a synonym that is put in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.config import LOW_HIGH, Config

Share = Annotated[float, Field(gt=0, le=1)]


class WordsConfig(Config, ABC):
    """What all operations have.

    Attributes:
        probability: of a caption to be changed at all.
    """

    probability: float = Field(default=1.0, gt=0, le=1)

    @abstractmethod
    def choose(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """The places of words after the operation, of those before it; at least one of at least one."""


class SwapConfig(WordsConfig):
    """Two random words change places, several times over. Not for captions in which order says who is where.

    Attributes:
        share: how many times, as a share of the words; at least once.
    """

    kind: Literal["swap"] = "swap"
    share: Share = 0.1

    def choose(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """See the base."""
        made = list(words)
        for _ in range(_times(self.share, words) if len(words) > 1 else 0):
            one, other = rng.choice(len(made), 2, replace=False).tolist()
            made[one], made[other] = made[other], made[one]
        return made


class DeleteConfig(WordsConfig):
    """Each word is left out by chance; of a caption that would lose all, a random one stays.

    Attributes:
        share: probability of each word.
    """

    kind: Literal["delete"] = "delete"
    share: Share = 0.1

    def choose(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """See the base."""
        stays = rng.random(len(words)) >= self.share
        return [word for word, it in zip(words, stays, strict=True) if it] or [words[int(rng.integers(len(words)))]]


class RepeatConfig(WordsConfig):
    """Random words are said a second time at random places.

    Attributes:
        share: how many, as a share of the words; at least one.
    """

    kind: Literal["repeat"] = "repeat"
    share: Share = 0.1

    def choose(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """See the base."""
        made = list(words)
        for _ in range(_times(self.share, words)):
            made.insert(int(rng.integers(len(made) + 1)), words[int(rng.integers(len(words)))])
        return made


class SpanConfig(WordsConfig):
    """A random span of consecutive words (Contriever's crop).

    Attributes:
        share: range of its length as a share of the words; at least one word.
    """

    kind: Literal["span"] = "span"
    share: Annotated[tuple[Share, Share], LOW_HIGH] = (0.5, 1.0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.share[0] > self.share[1]:
            raise ValueError(f"got share {list(self.share)}, wanted [smallest, largest]")
        return self

    def choose(self, words: list[int], rng: np.random.Generator) -> list[int]:
        """See the base."""
        length = max(1, round(rng.uniform(*self.share) * len(words)))
        start = int(rng.integers(len(words) - length + 1))
        return words[start : start + length]


WordOperation = Annotated[SwapConfig | DeleteConfig | RepeatConfig | SpanConfig, Field(discriminator="kind")]


def draw_words(text: str, operations: Sequence[WordsConfig], rng: np.random.Generator) -> list[int] | None:
    """Places of the words of `text` after all operations in their order; None if it stays as it is, to the letter."""
    before = list(range(len(text.split())))
    words = before
    for operation in operations:
        if words and rng.random() < operation.probability:
            words = operation.choose(words, rng)
    return None if words == before else words


def take_words(text: str, words: Sequence[int]) -> str:
    """The words of `text` at these places, with single spaces."""
    split = text.split()
    return " ".join(split[word] for word in words)


def _times(share: float, words: Sequence[int]) -> int:
    return max(1, round(share * len(words)))
