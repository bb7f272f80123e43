"""False captions: rewriting by kind, given ones, the drawn caption, replay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.core.sample import Origin, Sample
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.captions.replace import (
    ATTRIBUTES,
    COLOURS,
    NUMBERS,
    add_word,
    exchange_words,
    replace_word,
)
from mmssl.data.modalities.text import TextConfig, TextModality


def build(**changes: object) -> TextModality:
    view = {"kind": "hard_negative", **{k: changes.pop(k) for k in ("falsehoods",) if k in changes}}
    return TextConfig.model_validate_json(json.dumps({"views": {"false": view}} | changes)).build("text")


def drawn(modality: TextModality, captions: Captions, seed: int = 0) -> tuple[dict, list[torch.Tensor]]:  # type: ignore[type-arg]
    sample = Sample("k", Origin("s", 0, 0, 0), 0, {"text": captions})
    needs = {"text": {"tokens": 1, "false": 1}}
    parameters = draw_views(sample, {"text": modality}, needs, (seed,))
    views = make_views(sample, {"text": modality}, needs, json.loads(json.dumps(parameters)))
    return parameters["text"]["false0"], [views["text"][name] for name in ("tokens0", "false0")]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("caption", "falsehood", "expected"),
    [
        ("a digit on the Left", "side", "a digit on the Right"),
        ("a dog barks before a bell rings", "order", "a dog barks after a bell rings"),
        ("she left the room", "side", None),
        ("one man on a bench", "number", None),
        ("a dog on a bench", "attribute", None),
        ("a tall house", "attribute", "a tiny house"),
        ("two red cups and three blue balls", "swap", "two blue cups and three red balls"),
        ("two cups and three balls", "swap", "three cups and two balls"),
        ("the cup is small", "add", None),
    ],
)
def test_the_false_caption(caption: str, falsehood: str, expected: str | None) -> None:
    modality = build(falsehoods=[falsehood])
    parameters, (true, false) = drawn(modality, Captions([caption]))
    assert parameters.get("negative") == expected
    assert torch.equal(true, modality.tokenize([caption])[0])
    assert torch.equal(false, modality.tokenize([expected or caption])[0])


def test_a_word_becomes_another_of_its_kind_that_the_caption_lacks() -> None:
    rng = np.random.default_rng(0)
    made = {replace_word("Two red cats, two blue dogs and 3 birds", NUMBERS + ATTRIBUTES, rng) for _ in range(200)}
    assert len(made) > 20
    for text in made:
        assert text is not None
        words = text.lower().replace(",", "").split()
        assert words.count("two") in (0, 2)  # all copies of a word
        assert ("red" in words) + ("blue" in words) >= 1
        assert words[1] != words[5]  # never exchanged for a word that the caption has
        assert text != "Two red cats, two blue dogs and 3 birds"
    assert replace_word("grey", (("grey", "gray"),), rng) is None


def test_grammar_does_not_tell_the_false_word() -> None:
    made = {replace_word("an old man at an open door", ATTRIBUTES, np.random.default_rng(seed)) for seed in range(20)}
    assert made == {None}, "a closed door, a young man"
    assert replace_word("the open door", ATTRIBUTES, np.random.default_rng(0)) == "the closed door"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a Red cup beside a blue ball", "a Blue cup beside a red ball"),
        ("Two dogs and three cats", "Three dogs and two cats"),
        ("a red and a blue ball", None),
        ("a red ball and a blue ball", None),
        ("a red ball and two blue balls", None),
        ("a grey cat and a gray dog", None),
        ("an old man and a young woman", None),
        ("the old man and the young woman", "the young man and the old woman"),
        ("a red cup, not a blue ball", None),
        ("a red cup and a small ball", None),
        ("a red dog, a blue cat and a red cat", None),
        ("a red cup", None),
    ],
)
def test_two_words_of_different_things_are_exchanged(caption: str, expected: str | None) -> None:
    assert exchange_words(caption, NUMBERS + ATTRIBUTES, np.random.default_rng(0)) == expected


def test_a_colour_is_added_to_one_that_is_named() -> None:
    made = {add_word("a Red cup, on a blue table", COLOURS, np.random.default_rng(seed)) for seed in range(200)}
    assert None not in made
    others = set(COLOURS) - {"red", "blue"}
    first = {f"a Red and {other} cup, on a blue table" for other in others}
    assert made == first | {f"a Red cup, on a blue and {other} table" for other in others}
    for caption in ("a black and white photo", "light blue sky", "a cup", "no red cup", "a red cup and a red ball"):
        assert add_word(caption, COLOURS, np.random.default_rng(0)) is None


def test_it_is_of_the_caption_and_the_words_that_tokens_draws() -> None:
    augment = [{"kind": "span", "share": [0.4, 0.6]}]
    modality = build(falsehoods=["side"], augment=augment)
    captions = Captions(["a red digit that is large on the left", "the digit moves fast on the right side of it"])
    seen = set()
    for seed in range(20):
        parameters, (true, false) = drawn(modality, captions, seed)
        seen.add(parameters["caption"])
        swapped = {"left": "right", "right": "left"}
        words = captions[parameters["caption"]].split()
        kept = [words[i] for i in parameters["words"]]
        assert torch.equal(true, modality.tokenize([" ".join(kept)])[0])
        assert torch.equal(false, modality.tokenize([" ".join(swapped.get(word, word) for word in kept)])[0])
    assert seen == {0, 1}


def test_given_false_captions_are_read_and_mirrored_with_the_sample() -> None:
    modality = build(falsehoods=["given"], captions={"caption": 1}, negatives="wrong")
    document = {"caption": "a cat on the left", "wrong": ["a cat on the right", "a dog on the left"]}
    captions = modality.decode(json.dumps(document).encode(), "json")
    assert captions == ("a cat on the left",)
    found = {drawn(modality, captions, seed)[0]["negative"] for seed in range(20)}
    assert found == set(document["wrong"])
    mirrored = modality.kernels["flip"].run(captions, {}, None)  # type: ignore[arg-type]
    assert mirrored == ("a cat on the right",)
    assert mirrored.negatives == ("a cat on the left", "a dog on the right")
    without = modality.decode(json.dumps({"caption": "a cat"}).encode(), "json")
    assert "negative" not in drawn(modality, without)[0]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"falsehoods": ["given"]}, "set `negatives`"),
        ({"negatives": "wrong"}, "wanted captions of the form"),
        ({"falsehoods": []}, "at least 1 item"),
    ],
)
def test_settings_without_an_effect_are_refused(changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        build(**changes)
