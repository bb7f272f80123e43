"""Text augmentation by words and sentences: EDA (Wei and Zou 2019, arXiv:1901.11196), random spans (arXiv:2112.09118), BART.

Each operation only chooses words: the parameters of an augmented caption are a list of word positions in the original. EDA's
synonyms need a database; here a repeated word replaces the insertion of a synonym.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.config import LOW_HIGH, Config

WordShare = Annotated[float, Field(gt=0, le=1)]
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
"""What the last word of a sentence ends with."""


class WordsConfig(Config, ABC):
    """Base class of the text augmentations.

    Attributes:
        probability: probability of the operation for a caption.
    """

    probability: float = Field(default=1.0, gt=0, le=1)

    @abstractmethod
    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """Choose word positions from `words` (at least one): the positions after the operation, at least one.

        Args:
            words: positions in the original.
            text: the words of the original.
            rng: for the draws.
        """


class SwapConfig(WordsConfig):
    """Random swap (EDA): swap two random words, several times. Not for captions whose word order has a spatial meaning.

    Attributes:
        share: number of swaps as a share of the words; at least one.
    """

    kind: Literal["swap"] = "swap"
    share: WordShare = 0.1

    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """See the base."""
        made = list(words)
        for _ in range(_times(self.share, words) if len(words) > 1 else 0):
            one, other = rng.choice(len(made), 2, replace=False).tolist()
            made[one], made[other] = made[other], made[one]
        return made


class DeleteConfig(WordsConfig):
    """Random deletion (EDA), or word dropout (Iyyer et al. 2015): drop each word with a probability, but keep at least one.

    Attributes:
        share: probability of dropping each word.
    """

    kind: Literal["delete"] = "delete"
    share: WordShare = 0.1

    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """See the base."""
        stays = rng.random(len(words)) >= self.share
        return [word for word, it in zip(words, stays, strict=True) if it] or [words[int(rng.integers(len(words)))]]


class RepeatConfig(WordsConfig):
    """Random repetition: insert copies of random words at random positions.

    Attributes:
        share: number of copies as a share of the words; at least one.
    """

    kind: Literal["repeat"] = "repeat"
    share: WordShare = 0.1

    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """See the base."""
        made = list(words)
        for _ in range(_times(self.share, words)):
            made.insert(int(rng.integers(len(made) + 1)), words[int(rng.integers(len(words)))])
        return made


class SpanConfig(WordsConfig):
    """Random crop: keep a random span of consecutive words (Contriever).

    Attributes:
        share: range of its length as a share of the words; at least one word.
    """

    kind: Literal["span"] = "span"
    share: Annotated[tuple[WordShare, WordShare], LOW_HIGH] = (0.5, 1.0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.share[0] > self.share[1]:
            raise ValueError(f"got share {list(self.share)}, wanted [smallest, largest]")
        return self

    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """See the base."""
        length = max(1, round(rng.uniform(*self.share) * len(words)))
        start = int(rng.integers(len(words) - length + 1))
        return words[start : start + length]


class SentencesConfig(WordsConfig):
    """Sentence permutation (BART, Lewis et al. 2020, arXiv:1910.13461): the sentences of a text in random order.

    A sentence ends with a word that ends with a full stop, a question mark or an exclamation mark, if need be before quotation
    marks or brackets. A text of one sentence stays as it is. Abbreviations such as "Dr." count as ends, too.
    """

    kind: Literal["sentences"] = "sentences"

    def choose(self, words: list[int], text: Sequence[str], rng: np.random.Generator) -> list[int]:
        """See the base."""
        sentences: list[list[int]] = [[]]
        for word in words:
            sentences[-1].append(word)
            if SENTENCE_END.search(text[word]):
                sentences.append([])
        whole = [sentence for sentence in sentences if sentence]
        return [word for number in rng.permutation(len(whole)) for word in whole[number]]


WordOperation = Annotated[
    SwapConfig | DeleteConfig | RepeatConfig | SpanConfig | SentencesConfig, Field(discriminator="kind")
]


def draw_words(text: str, operations: Sequence[WordsConfig], rng: np.random.Generator) -> list[int] | None:
    """Draw the word positions of `text` after all operations, in their order; None if the text is unchanged."""
    split = text.split()
    before = list(range(len(split)))
    words = before
    for operation in operations:
        if words and rng.random() < operation.probability:
            words = operation.choose(words, split, rng)
    return None if words == before else words


def take_words(text: str, words: Sequence[int]) -> str:
    """Join the words of `text` at these positions with single spaces."""
    split = text.split()
    return " ".join(split[word] for word in words)


def first_words(text: str, share: float) -> str:
    """The first words of `text`: a share of them, rounded, at least one."""
    return take_words(text, range(_times(share, text.split())))


def _times(share: float, words: Sequence[object]) -> int:
    return max(1, round(share * len(words)))
