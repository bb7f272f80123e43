"""Synchronized augmentation in recipes: it reads, is written back, and what cannot be done is refused at build."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import RecipeError
from mmssl.core.plan import Plan
from mmssl.recipe.recipe import Recipe, load_recipe
from mmssl.recipe.validate import validate_text

RECIPE = Path(__file__).parents[2] / "configs/quickstart/image_text.yaml"


def build(operations: str) -> Recipe:
    recipe = load_recipe(RECIPE, [f"data.synchronized={operations}"])
    recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    return recipe


def test_a_recipe_names_what_is_synchronized() -> None:
    recipe = build("[{kind: flip, probability: 0.5}, {kind: crop, scale: [0.8, 1.0]}]")
    assert [operation.kind for operation in recipe.data.synchronized] == ["flip", "crop"]
    assert validate_text(Recipe, recipe.to_yaml(), "again") == recipe


@pytest.mark.parametrize(
    ("operations", "sentence"),
    [
        ("[{kind: speed}]", "data.synchronized: speed has no effect: image .a still picture has no time axis"),
        ("[{kind: flip}, {kind: time_crop, seconds: 1}]", "data.synchronized: time_crop must come first"),
        ("[{kind: dropout, modalities: {imgae: 0.1}}]", "did you mean 'image'"),
        ("[{kind: filp}]", "did you mean 'flip'"),
        ("[{kind: flip, probability: 2}]", "probability"),
    ],
)
def test_what_cannot_be_done_is_refused(operations: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        build(operations)
