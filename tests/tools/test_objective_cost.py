"""What a row is set beside: SimCLR on the same data, with the same encoder where there is no row of it."""

from __future__ import annotations

import json
from pathlib import Path

import objective_cost
import pytest

from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text

SHARDS = Path("shards")


@pytest.mark.parametrize("name", objective_cost.ROWS)
def test_every_row_has_a_base(name: str) -> None:
    row, base = (of(name, SHARDS, 5) for of in (objective_cost.recipe_of, objective_cost.base_of))
    for document in (row, base):
        validate_text(Recipe, json.dumps(document), name)
        assert (document["batch_size"], document["duration"]) == (64, "6 steps")
    assert base["objective"]["kind"] == "simclr"
    modality = objective_cost.MODALITIES[objective_cost.learning.ROWS[name]["data"]][0]
    assert [*base["encoders"]] == [modality]


def test_sentences_and_series_are_encoded_alike() -> None:
    row, base = (of("ts2vec, rhythms", SHARDS, 5) for of in (objective_cost.recipe_of, objective_cost.base_of))
    assert row["encoders"] == base["encoders"]
    assert [*row["modalities"]["series"]["views"]] == ["crop", "mask"]
    assert [*base["modalities"]["series"]["views"]] == ["crop"]
    assert (
        objective_cost.base_of("simclr, COLA", SHARDS, 5)["objective"]
        == objective_cost.learning.ROWS["simclr, sounds"]["objective"]
    )
