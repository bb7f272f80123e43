"""Captions against other orders of their words, with models that read places of words, words alone, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.data.modalities.captions.shuffle import SHUFFLES
from mmssl.evaluation.relations.word_order import WordOrderConfig
from tests.evaluation.relations.test_compositionality import hashed, modalities, seen, shards
from tests.evaluation.world import configured, model

CAPTIONS = (
    "a red cup stands near a blue ball on the table",
    "two dogs and three cats on the left",
    "a large dog barks before a bell rings again",
    "a cup",
)


def measure(folder: Path, to: EmbeddingModel, captions: Sequence[str] = CAPTIONS, **settings: Any) -> dict[str, Any]:
    config = {"shards": shards(folder, captions), "pair": ["picture", "words"], "resamples": 100, **settings}
    with configured(WordOrderConfig, **config).build(modalities()) as evaluator:
        found = dict(evaluator.evaluate(to))
        found["rows"] = evaluator.tables["samples"].columns
    return found


def test_who_reads_places_is_always_right_and_who_does_not_has_chance(tmp_path: Path) -> None:
    read = hashed(lambda place: 1.0 + place)
    places = measure(tmp_path, model(64, picture=seen(read, CAPTIONS), words=read))
    assert (places["n"], places["n_captions"], places["n_excluded"]) == (3, 3, 1)
    assert places["acc"] == 1.0
    assert all(places[f"acc_{shuffle}"] == 1.0 for shuffle in SHUFFLES)
    assert (places["acc_chance"], places["acc_things_chance"], places["tie_rate"]) == (0.2, 0.5, 0)
    assert places["rows"]["key"] == ["s0", "s1", "s2"]
    nothing = model(3, picture=lambda x: torch.ones(len(x), 3), words=lambda x: torch.ones(len(x), 3))
    collapsed = measure(tmp_path, nothing)
    assert collapsed["acc"] == pytest.approx(0.2)
    assert collapsed["acc_trigrams"] == 0.5
    assert collapsed["tie_rate"] == 1


def test_captions_that_are_too_short_and_a_wrong_pair_are_told(tmp_path: Path) -> None:
    read = hashed(lambda place: 1.0 + place)
    with pytest.raises(DataError, match="no sample has the relation between"):
        measure(tmp_path, model(64, picture=seen(read, ["a cup"]), words=read), ["a cup"])
    with pytest.raises(RecipeError, match="for kind word_order, wanted the captions second"):
        measure(tmp_path, model(64, picture=seen(read, CAPTIONS), words=read), pair=["words", "picture"])


def test_files_have_the_captions_and_their_orders(tmp_path: Path) -> None:
    read = hashed(lambda place: 1.0 + place)
    config = configured(WordOrderConfig, shards=shards(tmp_path, CAPTIONS), pair=["picture", "words"], resamples=100)
    with config.build(modalities()) as evaluator:
        dict(evaluator.evaluate(model(64, picture=seen(read, CAPTIONS), words=read)))
        texts = evaluator.tables["samples"].texts()
    assert texts["text"] == [*CAPTIONS[:3]]
    assert texts.keys() == {"text", *(f"text_{shuffle}" for shuffle in SHUFFLES)}
    for shuffle in SHUFFLES:
        for caption, other in zip(texts["text"], texts[f"text_{shuffle}"], strict=True):
            assert other != caption
            assert sorted(other.split()) == sorted(caption.split())
