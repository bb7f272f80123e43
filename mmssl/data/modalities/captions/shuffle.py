"""Captions with their words in another order: the four shuffles of ARO's COCO-Order and Flickr30k-Order (arXiv:2210.01936)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmssl.data.modalities.captions.words import word_set

_GRAMMAR = word_set(
    "a an the this that these those some any each every both all no another other such"
    " i you he she it we they me him her us them my your his its our their who whom whose which what"
    " and or but nor so yet while as if when where because than then though although until since"
    " of on in at to with by for from near over under beside behind below above between among along across around through into onto"
    " off out up down inside outside past against about toward towards during before after next without within atop upon like"
    " is are was were be been being am has have had having do does did will would can could may might must shall should"
    " not never there here very too also just only still now away together apart"
)
"""Words of the closed classes, which name nothing."""
_VERBS = word_set(
    "sit sits sat stand stands stood lie lies lay ride rides rode walk walks run runs ran hold holds held look looks wear wears"
    " wore eat eats ate play plays jump jumps fly flies flew hang hangs hung rest rests lean leans drive drives drove carry carries"
    " watch watches show shows make makes take takes get gets go goes come comes talk talks throw throws catch catches"
)
_ENDINGS = ("ing", "ed", "ly")
_THINGS = word_set(
    "string spring morning evening building ceiling railing clothing wedding painting sibling family assembly"
)
"""Things with such an ending, besides those too short to be a verb's form: "red", "ring", "fly"."""
SHUFFLES = ("things", "grammar", "within_trigrams", "trigrams")
"""Names of the shuffles, see `shuffle_words`."""


def names_something(word: str) -> bool:
    """Whether a word counts as a noun or an adjective, without a tagger: it is not of a closed class, no frequent verb of captions,
    and does not end in -ing, -ed or -ly after three letters or more. Numbers in digits count as neither."""
    plain = word.strip(".,;:!?\"'()").casefold()
    if not plain.isalpha() or plain in _GRAMMAR or plain in _VERBS:
        return False
    return plain in _THINGS or not any(plain.endswith(one) and len(plain) > len(one) + 2 for one in _ENDINGS)


def shuffle_words(kind: str, caption: str, rng: np.random.Generator) -> str:
    """Put the words of a caption (between blanks, as in ARO) into another order.

    Args:
        kind: "things": nouns and adjectives change places among themselves; "grammar": all other words do; "within_trigrams": the
            words of each group of three; "trigrams": these groups.
        caption: the sentence.
        rng: draws the order.

    Raises:
        ValueError: no such kind.
    """
    words = caption.split()
    if kind not in _WAYS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(SHUFFLES)}")
    return " ".join(_WAYS[kind](words, rng))


def _some(words: Sequence[str], chosen: Sequence[int], rng: np.random.Generator) -> list[str]:
    """The words, of which those at the chosen places are shuffled among these."""
    found = list(words)
    for place, source in zip(chosen, rng.permutation(np.array(chosen, dtype=np.int64)), strict=True):
        found[place] = words[source]
    return found


def _things(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return _some(words, [place for place, word in enumerate(words) if names_something(word)], rng)


def _grammar(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return _some(words, [place for place, word in enumerate(words) if not names_something(word)], rng)


def _trigrams(words: Sequence[str]) -> list[Sequence[str]]:
    return [words[start : start + 3] for start in range(0, len(words), 3)]


def _within(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [word for three in _trigrams(words) for word in _some(three, range(len(three)), rng)]


def _between(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    groups = _trigrams(words)
    return [word for place in rng.permutation(len(groups)) for word in groups[place]]


_WAYS: Mapping[str, Callable[[Sequence[str], np.random.Generator], list[str]]] = dict(
    zip(SHUFFLES, (_things, _grammar, _within, _between), strict=True)
)
