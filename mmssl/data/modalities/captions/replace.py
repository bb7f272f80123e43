"""Replace an attribute or a number in a caption by another one of its kind, so that the caption becomes false.

Words that may mean something else are kept: "one" (the pronoun), "orange" as a fruit, "light" and "short" as other adjectives.
"""

from __future__ import annotations

import numpy as np

from mmssl.data.modalities.captions.words import Words, in_case_of

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
_ALIKE = (frozenset({"grey", "gray"}),)


def replace_word(caption: str, groups: tuple[tuple[str, ...], ...], rng: np.random.Generator) -> str | None:
    """Replace one word of the groups, drawn at random, by another word of its group; None: the caption has none.

    Where the caption has several words of one group, the drawn one becomes a word that is not among them: exchanging them could
    leave "a red and a blue ball" true. All copies of the word are replaced.
    """
    sentence = Words.of(caption)
    found = sorted({(word, group) for group in groups for word in sentence.words if word in group})
    if not found:
        return None
    word, group = found[int(rng.integers(len(found)))]
    present = {word}.union(*(alike for alike in _ALIKE if word in alike)) | set(sentence.words)
    others = [other for other in group if other not in present]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    parts, done = [], 0
    for (start, stop), here in zip(sentence.spans, sentence.words, strict=True):
        if here == word:
            written = in_case_of(caption[start:stop], other) if word.isalpha() else other
            if written is None:
                return None
            parts += [caption[done:start], written]
            done = stop
    return "".join([*parts, caption[done:]])
