"""Captions under a transformation of what they describe: words are swapped, left alone, or the caption is given up.

Sentences are judged word by word, and a doubt about one word is a doubt about the caption. Whoever transforms the sample then
leaves it as it is: a wrong caption teaches a wrong relation, and a transformation that did not happen costs nothing.
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
    """The words of a text, each once."""
    return frozenset(text.split())


class Rewrite(NamedTuple):
    """A caption after a transformation.

    Attributes:
        outcome: "swapped"; "unchanged": it holds for the transformed sample as it stands; "ambiguous": nobody can tell.
        text: the new caption; the old one unless swapped.
    """

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Words:
    """The words and marks of a sentence.

    Attributes:
        text: the sentence. spans: where each word stands in it. words: the same words in lower case.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    words: Sequence[str]

    @classmethod
    def of(cls, text: str) -> Words:
        """Words keep their inner hyphens and apostrophes; each mark is a word of its own."""
        found = list(_WORD.finditer(text))
        return cls(text, [match.span() for match in found], [match[0].lower().replace("’", "'") for match in found])

    def at(self, place: int) -> str:
        """The word there; before the first and behind the last there is "."."""
        return self.words[place] if 0 <= place < len(self.words) else "."


def rewrite(text: str, mirror: Callable[[str], str | None], judge: Callable[[Words, int], Verdict]) -> Rewrite:
    """Swap the words that `judge` says to swap.

    Swapping twice gives the first text back: a caption whose other form would be read otherwise is ambiguous.

    Args:
        text: the caption.
        mirror: a word in lower case -> its opposite; None: the word has none, and is not looked at.
        judge: what to do with a word that has one, from the words around it.
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
        written = _in_case_of(text[start:stop], other) if verdict == "swap" else None
        if verdict == "doubt" or (verdict == "swap" and written is None):
            return None
        if written is not None:
            parts += [text[done:start], written]
            done = stop
    return "".join([*parts, text[done:]])


def _in_case_of(model: str, word: str) -> str | None:
    """`word` written in capitals as `model` is; None where there is no telling how."""
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
    parts = [_in_case_of(a, b) if a.isalpha() else b for a, b in zip(ours, theirs, strict=True)]
    return None if None in parts else "".join(map(str, parts))
