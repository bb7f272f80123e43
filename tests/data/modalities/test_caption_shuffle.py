"""Captions in another order: the same words, moved where the kind says, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from mmssl.data.modalities.captions.shuffle import SHUFFLES, names_something, shuffle_words

CAPTION = "a small dog is sitting on the old bench near two children"


@pytest.mark.parametrize("kind", SHUFFLES)
def test_the_words_stay_and_the_seed_decides(kind: str) -> None:
    made = [shuffle_words(kind, CAPTION, np.random.default_rng(seed)) for seed in range(20)]
    assert all(sorted(one.split()) == sorted(CAPTION.split()) for one in made)
    assert len(set(made)) > 5
    assert shuffle_words(kind, CAPTION, np.random.default_rng(3)) == made[3]


def test_what_moves() -> None:
    words = CAPTION.split()
    things = [place for place, word in enumerate(words) if names_something(word)]
    assert [words[place] for place in things] == ["small", "dog", "old", "bench", "two", "children"]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        moved = {kind: shuffle_words(kind, CAPTION, rng).split() for kind in SHUFFLES}
        assert all(moved["things"][i] == word for i, word in enumerate(words) if i not in things)
        assert all(moved["grammar"][i] == words[i] for i in things)
        threes = [moved["within_trigrams"][i : i + 3] for i in range(0, 12, 3)]
        assert [sorted(three) for three in threes] == [sorted(words[i : i + 3]) for i in range(0, 12, 3)]
        groups = [moved["trigrams"][i : i + 3] for i in range(0, 12, 3)]
        assert sorted(groups) == sorted(words[i : i + 3] for i in range(0, 12, 3))


def test_the_rule_without_a_tagger() -> None:
    found = {
        "The running man, slowly painted; 12 red cars.": ["man,", "red", "cars."],
        "a king rides by the building with a sled": ["king", "building", "sled"],
    }
    for sentence, things in found.items():
        assert [word for word in sentence.split() if names_something(word)] == things
    with pytest.raises(ValueError, match="kind: got 'all', wanted one of things, grammar"):
        shuffle_words("all", CAPTION, np.random.default_rng(0))
