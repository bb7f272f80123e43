"""Replace, exchange or add attributes and numbers in a caption, so that it becomes false.

Words that may mean something else are kept: "one" (the pronoun), "orange" as a fruit, "light" and "short" as other adjectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from mmssl.data.modalities.captions.words import Words, in_case_of, word_set

Groups = tuple[tuple[str, ...], ...]

NUMBERS = (("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), tuple("23456789"))
ATTRIBUTES = (
    ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "grey", "gray"),
    ("small", "large"),
    ("little", "big"),
    ("tall", "tiny"),
    ("old", "young"),
    ("open", "closed"),
    ("empty", "full"),
    ("wet", "dry"),
    ("wooden", "metal", "plastic", "glass"),
    ("round", "square", "triangular"),
    ("loud", "quiet"),
    ("fast", "slow"),
)
COLOURS = ATTRIBUTES[0]
_ALIKE = (frozenset({"grey", "gray"}),)
_NEGATIONS = word_set("not no without never neither nor cannot")
_NO_THINGS = word_set(
    "a an the and or but of on in at to with by for from near over under beside behind is are was were it its one ones while as"
    " that which who very his her their other another"
)
_JOINED = word_set("and or & / - , with light dark bright pale deep neon hot")
"""Words beside a colour that make it a part of several, or of a shade."""


def replace_word(caption: str, groups: Groups, rng: np.random.Generator) -> str | None:
    """Replace one word of the groups, drawn at random, by another word of its group; None: the caption has none.

    Where the caption has several words of one group, the drawn one becomes a word that is not among them: exchanging them could
    leave "a red and a blue ball" true. All copies of the word are replaced. After "a" or "an" only words that may follow it are
    taken, because grammar alone would tell "a open door".
    """
    sentence = Words.of(caption)
    found = sorted({(word, group) for group in groups for word in sentence.words if word in group})
    if not found:
        return None
    word, group = found[int(rng.integers(len(found)))]
    places = [place for place, here in enumerate(sentence.words) if here == word]
    others = [
        other
        for other in group
        if other not in _present(sentence, word) and all(_fits(sentence, place, other) for place in places)
    ]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    return _written(sentence, dict.fromkeys(places, other))


def exchange_words(caption: str, groups: Groups, rng: np.random.Generator) -> str | None:
    """Exchange two words of one group that stand before different things, drawn at random; None: the caption has none.

    "a red cup and a blue ball" becomes "a blue cup and a red ball". "a red and a blue ball" and "a red ball and a blue ball" are
    left alone, because they would stay true; so are captions with a negation, and words that stand there twice.
    """
    sentence = Words.of(caption)
    if _is_negated(sentence):
        return None
    places = {
        place: group
        for group in groups
        for place, word in enumerate(sentence.words)
        if word in group and sentence.words.count(word) == 1
    }
    possible = []
    for first, second in combinations(sorted(places), 2):
        one, other = sentence.words[first], sentence.words[second]
        if places[first] != places[second] or any({one, other} <= alike for alike in _ALIKE):
            continue
        things = {_thing(sentence, place, groups) for place in (first, second)}
        if len(things) == 2 and None not in things and _fits(sentence, first, other) and _fits(sentence, second, one):
            possible.append({first: other, second: one})
    return _written(sentence, possible[int(rng.integers(len(possible)))]) if possible else None


def add_word(caption: str, group: tuple[str, ...], rng: np.random.Generator) -> str | None:
    """Add "and" with another word of the group behind one that describes a thing, drawn at random; None: the caption has none.

    "a red cup" becomes "a red and blue cup". Words that are joined to another already, as in "black and white" or "light blue",
    are left alone; so are captions with a negation, and words that stand there twice.
    """
    sentence = Words.of(caption)
    if _is_negated(sentence):
        return None
    places = [
        place
        for place, word in enumerate(sentence.words)
        if word in group
        and sentence.words.count(word) == 1
        and not {sentence.at(place - 1), sentence.at(place + 1)} & {*_JOINED, *group}
    ]
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    others = [other for other in group if other not in _present(sentence, sentence.words[place])]
    if not others:
        return None
    stop = sentence.spans[place][1]
    return f"{caption[:stop]} and {others[int(rng.integers(len(others)))]}{caption[stop:]}"


def _present(sentence: Words, word: str) -> set[str]:
    """The words of the sentence, and those that mean the same as `word`, one of them."""
    return set(sentence.words).union(*(some for some in _ALIKE if word in some))


def _is_negated(sentence: Words) -> bool:
    return any(word in _NEGATIONS or word.endswith("n't") for word in sentence.words)


def _thing(sentence: Words, place: int, groups: Groups) -> str | None:
    """The thing that the word at `place` describes, the next word in the singular; None: it is no thing."""
    word = sentence.at(place + 1)
    if not word.isalpha() or word in _NO_THINGS or any(word in group for group in groups):
        return None
    return word.removesuffix("s")


def _fits(sentence: Words, place: int, word: str) -> bool:
    """Whether a word may stand at `place` by its article."""
    wanted = {"a": False, "an": True}.get(sentence.at(place - 1))
    return wanted is None or (word[0] in "aeiou") is wanted


def _written(sentence: Words, changes: Mapping[int, str]) -> str | None:
    """The sentence with other words at some places, in the case of those before; None: a case is ambiguous."""
    parts, done = [], 0
    for place in sorted(changes):
        (start, stop), word = sentence.spans[place], changes[place]
        here = sentence.text[start:stop]
        written = in_case_of(here, word) if here.isalpha() else word
        if written is None:
            return None
        parts += [sentence.text[done:start], written]
        done = stop
    return "".join([*parts, sentence.text[done:]])
