"""Operations on words: what they choose, how often, and that evaluation never sees them."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.views.text_augment import WordOperation, WordsConfig, draw_words, take_words

TEN = list(range(10))
CAPTION = "a small dog runs after the red ball on grass"


def operation(**settings: Any) -> WordsConfig:
    made: WordsConfig = TypeAdapter(WordOperation).validate_json(json.dumps(settings))
    return made


def draws(words: list[int], count: int = 2000, **settings: Any) -> list[list[int]]:
    chosen = operation(**settings)
    return [chosen.choose(list(words), CAPTION.split(), np.random.default_rng(seed)) for seed in range(count)]


def test_swaps_keep_all_words() -> None:
    for share, moved in ((0.1, {2}), (0.2, {0, 3, 4})):
        made = draws(TEN, kind="swap", share=share)
        assert all(sorted(words) == TEN for words in made)
        assert {sum(a != b for a, b in zip(words, TEN, strict=True)) for words in made} == moved
    pairs = Counter(tuple(np.flatnonzero(np.array(words) != TEN)) for words in draws(TEN, kind="swap"))
    assert len(pairs) == 45, "every pair"
    assert draws([7], 5, kind="swap") == [[7]] * 5


def test_deletions_keep_order_and_never_all() -> None:
    made = draws(TEN, kind="delete", share=0.3)
    assert all(words == sorted(words) for words in made)
    assert np.mean([len(words) for words in made]) == pytest.approx(7, abs=0.1)
    counts = Counter(word for words in made for word in words)
    assert [counts[word] / 2000 for word in TEN] == pytest.approx([0.7] * 10, abs=0.05)
    assert {tuple(words) for words in draws([4, 5], 200, kind="delete", share=1.0)} == {(4,), (5,)}


def test_repetitions_add_words_that_were_there() -> None:
    made = draws(TEN, kind="repeat", share=0.2)
    assert all(len(words) == 12 and set(words) == set(TEN) for words in made)
    twice = Counter(word for words in made for word, count in Counter(words).items() if count > 1)
    assert set(twice) == set(TEN)
    places = {next(i for i, (a, b) in enumerate(zip(words, [*TEN, -1], strict=False)) if a != b) for words in made}
    assert places == set(range(11))
    assert draws([3], 3, kind="repeat") == [[3, 3]] * 3


def test_spans_are_consecutive_and_of_every_length_and_place() -> None:
    made = draws(TEN, kind="span", share=[0.3, 0.7])
    assert all(words == list(range(words[0], words[0] + len(words))) for words in made)
    assert {len(words) for words in made} == {3, 4, 5, 6, 7}
    assert {words[0] for words in made if len(words) == 3} == set(range(8))
    assert draws([0, 1], 3, kind="span", share=[0.01, 0.01])[0] in ([0], [1])


def test_sentences_stay_whole_in_every_order() -> None:
    text = 'It rains. "Where is she?" he asks\nnow. No end'
    chain = [operation(kind="sentences")]
    made = Counter()  # type: ignore[var-annotated]
    for seed in range(2400):
        words = draw_words(text, chain, np.random.default_rng(seed))
        made[text if words is None else take_words(text, words)] += 1
    four = ["It rains.", '"Where is she?"', "he asks now.", "No end"]
    expected = {" ".join(order) for order in itertools.permutations(four)} - {" ".join(four)} | {text}
    assert made.keys() == expected
    assert min(made.values()) > 60, "100 of each are expected"


def test_one_sentence_stays_as_it_is() -> None:
    for text in (CAPTION, f"{CAPTION}.", "Stop!"):
        assert draw_words(text, [operation(kind="sentences")], np.random.default_rng(1)) is None


def test_probability_counts_captions() -> None:
    chain = [operation(kind="swap", probability=0.25)]
    drawn = [draw_words(CAPTION, chain, np.random.default_rng(seed)) for seed in range(2000)]
    assert np.mean([words is not None for words in drawn]) == pytest.approx(0.25, abs=0.03)


def test_operations_follow_each_other() -> None:
    chain = [operation(kind="span", share=[0.5, 0.5]), operation(kind="repeat", share=0.2)]
    for seed in range(50):
        words = draw_words(CAPTION, chain, np.random.default_rng(seed))
        assert words is not None
        assert len(words) == 6
        assert len(set(words)) == 5
        assert take_words(CAPTION, words).split() == [CAPTION.split()[word] for word in words]
    assert draw_words(CAPTION, [], np.random.default_rng(0)) is None
    assert draw_words("", chain, np.random.default_rng(0)) is None


def test_views_replay_and_evaluation_is_untouched() -> None:
    text = '{"augment": [{"kind": "delete", "share": 0.2}, {"kind": "swap", "probability": 0.5}]}'
    modality = pickle.loads(pickle.dumps(TextConfig.model_validate_json(text).build("text")))
    plain = TextConfig().build("text")
    value = modality.decode(CAPTION.encode(), "txt")
    tokens = modality.views["tokens"]
    seen = set()
    for seed in range(30):
        parameters = tokens.draw(value, np.random.default_rng(seed))
        made = tokens(value, parameters)
        assert torch.equal(made, tokens(value, json.loads(json.dumps(parameters))))
        changed = take_words(CAPTION, parameters["words"]) if "words" in parameters else CAPTION
        assert torch.equal(made, plain.tokenize([changed])[0])
        seen.add(tuple(made.tolist()))
    assert len(seen) > 20
    assert modality.views["eval"].draw(value, np.random.default_rng(0)) == {}
    assert torch.equal(modality.views["eval"](value, {}), plain.tokenize([CAPTION]))
    assert plain.views["tokens"].draw(value, np.random.default_rng(0)) == {"caption": 0}
    untouched = plain.decode(b"two  spaces", "txt")
    assert torch.equal(plain.views["tokens"](untouched, {"caption": 0}), plain.tokenize(["two  spaces"])[0])


def test_which_caption_is_drawn_does_not_depend_on_it() -> None:
    captions = '"captions": "lines"'
    plain = TextConfig.model_validate_json("{" + captions + "}").build("text")
    changed = TextConfig.model_validate_json("{" + captions + ', "augment": [{"kind": "swap"}]}').build("text")
    value = plain.decode(b"one two\nthree four\nfive six", "txt")
    for seed in range(20):
        drawn = [one.views["tokens"].draw(value, np.random.default_rng(seed))["caption"] for one in (plain, changed)]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "synonym"},
        {"kind": "swap", "share": 0.0},
        {"kind": "delete", "share": 1.5},
        {"kind": "repeat", "probability": 0.0},
        {"kind": "span", "share": [0.9, 0.1]},
    ],
)
def test_configs_that_mean_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        operation(**settings)
