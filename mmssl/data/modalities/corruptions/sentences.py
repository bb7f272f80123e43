"""Corruptions of sentences: keys beside the right one, letters that are lost, doubled or swapped, and capitals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from mmssl.data.corruption import RewriteText, TextCorruption

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Letters of a US keyboard; each row stands half a key further to the right than the one above."""


def _neighbours() -> dict[str, str]:
    places = {letter: (row, column + row / 2) for row, keys in enumerate(ROWS) for column, letter in enumerate(keys)}
    return {
        letter: "".join(
            other for other, (r, c) in places.items() if other != letter and abs(r - row) <= 1 and abs(c - column) <= 1
        )
        for letter, (row, column) in places.items()
    }


NEIGHBOURS: Mapping[str, str] = _neighbours()
"""Letter -> those whose keys touch its key."""


def _letters(change: Callable[[str, int, np.random.Generator], str]) -> RewriteText:
    """Rewrite a share of the letters, at least one: `change` gives what stands in the place of the letter at a place of a text.

    The letters are the first of a random order, so that a larger share has those of a smaller one.
    """

    def rewrite(text: str, strength: float, generator: np.random.Generator) -> str:
        places = [place for place, letter in enumerate(text) if letter.isalpha()]
        order = generator.permutation(len(places)).tolist()
        chosen = {places[number] for number in order[: math.ceil(strength * len(places))]}
        keys = {
            place: np.random.default_rng(int(seed))
            for place, seed in enumerate(generator.integers(2**31, size=len(text)))
        }
        return "".join(change(text, i, keys[i]) if i in chosen else letter for i, letter in enumerate(text))

    return rewrite


def _neighbour(text: str, place: int, generator: np.random.Generator) -> str:
    near = NEIGHBOURS.get(text[place].lower())
    if near is None:  # a letter of another alphabet
        return text[place]
    letter = near[int(generator.integers(len(near)))]
    return letter.upper() if text[place].isupper() else letter


def _swapped(text: str, strength: float, generator: np.random.Generator) -> str:
    """Swap a share of the pairs of letters within words, at least one, each letter at most once."""
    pairs = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha() and text[i] != text[i + 1]]
    order = generator.permutation(len(pairs)).tolist()
    letters, moved = list(text), set[int]()
    for number in order[: math.ceil(strength * len(pairs))]:
        place = pairs[number]
        if not moved & {place, place + 1}:
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
            moved |= {place, place + 1}
    return "".join(letters)


SENTENCES: Mapping[str, TextCorruption] = {
    "typos": TextCorruption(_letters(_neighbour), (0.02, 0.05, 0.1, 0.2, 0.3)),
    "deleted_letters": TextCorruption(_letters(lambda text, place, _: ""), (0.02, 0.05, 0.1, 0.2, 0.3)),
    "doubled_letters": TextCorruption(_letters(lambda text, place, _: 2 * text[place]), (0.02, 0.05, 0.1, 0.2, 0.3)),
    "swapped_letters": TextCorruption(_swapped, (0.02, 0.05, 0.1, 0.2, 0.3)),
    "casing": TextCorruption(_letters(lambda text, place, _: text[place].swapcase()), (0.1, 0.25, 0.5, 0.75, 1.0)),
}
"""Corruptions of sentences; strengths are shares of the letters, or of the pairs of letters, rounded up. Tokenizers that know no
capitals, such as CLIP's, make nothing of `casing`: evaluators say that it changed no input."""
