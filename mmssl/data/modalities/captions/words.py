"""Rewrite captions of transformed samples: swap words, keep them, or declare the caption ambiguous.

Each word is judged separately, and one ambiguous word makes the caption ambiguous. The sample is then left unchanged: a wrong
caption teaches a wrong relation, while a skipped augmentation costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Outcome = Literal["swapped", "unchanged", "ambiguous"]
Verdict = Literal["swap", "keep", "doubt"]

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|\d+|[^\w\s]|_")


def word_set(text: str) -> frozenset[str]:
    """Set of the words of a text."""
    return frozenset(text.split())


class Rewrite(NamedTuple):
    """A caption after a transformation.

    Attributes:
        outcome: "swapped"; "unchanged": it also holds for the transformed sample; "ambiguous": unknown.
        text: the new caption; the old one unless swapped.
    """

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Words:
    """The words and marks of a sentence.

    Attributes:
        text: the sentence. spans: position of each word in it. words: the same words in lower case.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    words: Sequence[str]

    @classmethod
    def of(cls, text: str) -> Words:
        """Split a sentence: words keep inner hyphens and apostrophes; each mark is a separate word."""
        found = list(_WORD.finditer(text))
        return cls(text, [match.span() for match in found], [match[0].lower().replace("’", "'") for match in found])

    def at(self, place: int) -> str:
        """The word at `place`; "." before the first and after the last."""
        return self.words[place] if 0 <= place < len(self.words) else "."


def rewrite(text: str, mirror: Callable[[str], str | None], judge: Callable[[Words, int], Verdict]) -> Rewrite:
    """Swap the words for which `judge` returns "swap".

    Swapping twice gives the first text back; a caption for which it would not is ambiguous.

    Args:
        text: the caption.
        mirror: a word in lower case -> its opposite; None: the word is kept.
        judge: (sentence, place) -> verdict on a word that has an opposite.
    """
    once = _swap(text, mirror, judge)
    if once is None:
        return Rewrite("ambiguous", text)
    if once == text:
        return Rewrite("unchanged", text)
    return Rewrite("swapped", once) if _swap(once, mirror, judge) == text else Rewrite("ambiguous", text)


def _swap(text: str, mirror: Callable[[str], str | None], judge: Callable[[Words, int], Verdict]) -> str | None:
    sentence = Words.of(text)
    parts: list[str] = []
    done = 0
    for place, (word, (start, stop)) in enumerate(zip(sentence.words, sentence.spans, strict=True)):
        other = mirror(word)
        if other is None:
            continue
        verdict = judge(sentence, place)
        written = in_case_of(text[start:stop], other) if verdict == "swap" else None
        if verdict == "doubt" or (verdict == "swap" and written is None):
            return None
        if written is not None:
            parts += [text[done:start], written]
            done = stop
    return "".join([*parts, text[done:]])


def in_case_of(model: str, word: str) -> str | None:
    """Write `word` in the case of `model`; None if that case is ambiguous."""
    if model.islower():
        return word
    if model.isupper():
        return word.upper()
    if model == model.capitalize():
        return word.capitalize()
    # Compounds such as Left-Hand: part by part.
    ours, theirs = re.split("([-'’])", model), re.split("([-'’])", word)
    if len(ours) != len(theirs) or len(ours) == 1:
        return None
    parts = [in_case_of(a, b) if a.isalpha() else b for a, b in zip(ours, theirs, strict=True)]
    return None if None in parts else "".join(map(str, parts))
