"""A recipe has training settings, and its YAML is flat: keys, their paths in errors and their order are those of one mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from mmssl.core.config import Config
from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.recipe.flat import FLAT, document_keys, flatten_keys, nest_keys
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.resume import refuse_other_recipe
from mmssl.recipe.shipped import find_recipe
from mmssl.recipe.strict_yaml import parse_yaml
from mmssl.recipe.validate import validate_text
from mmssl.training.run import TrainingConfig

NAME = "quickstart/image_text"


class Engine(Config):
    power: int
    cylinders: tuple[int, ...] = ()


class Car(Config):
    engine: Annotated[Engine, FLAT]
    name: str


def test_keys_are_grouped_and_spread_again() -> None:
    document = {"name": "x", "power": 3}
    grouped = nest_keys(Car, document)
    assert grouped == {"engine": {"power": 3}, "name": "x"}
    assert flatten_keys(Car, grouped) == document
    assert list(document_keys(Car)) == ["power", "cylinders", "name"]


def test_lists_are_tuples_in_grouped_keys_too() -> None:
    assert validate_text(Car, "{name: x, power: 3, cylinders: [1, 2]}", "car").engine.cylinders == (1, 2)


def test_mistakes_on_both_sides_are_named_at_once_by_flat_paths() -> None:
    with pytest.raises(RecipeError) as caught:
        validate_text(Car, "nam: x\ncylinders: [1, b]\n", "car.yaml")
    assert str(caught.value).split("\n  ") == [
        "car.yaml: 4 mistakes",
        "car.yaml:1: power: missing; wanted an integer",
        'car.yaml:2: cylinders.1: got "b", wanted a valid integer',
        "car.yaml:1: name: missing; wanted a string",
        "car.yaml:1: nam: unknown key, did you mean 'name'?; allowed here: cylinders, name, power",
    ]


def test_the_name_of_the_field_is_no_key() -> None:
    with pytest.raises(RecipeError, match=r"car.yaml:3: engine: unknown key; allowed here: cylinders, name, power"):
        validate_text(Car, "name: x\npower: 3\nengine: {power: 3}\n", "car.yaml")


def test_a_recipe_has_training_settings_and_writes_them_flat() -> None:
    recipe = find_recipe(NAME, ["optimizer.lr=0.5", "save.keep_last=7"])
    assert not isinstance(recipe, TrainingConfig)
    assert (recipe.training.optimizer.lr, recipe.training.save.keep_last) == (0.5, 7)
    written = parse_yaml(recipe.to_yaml(), "written").value
    assert list(written) == list(document_keys(Recipe))
    assert written["optimizer"]["lr"] == 0.5
    assert validate_text(Recipe, recipe.to_yaml(), "written") == recipe


def test_a_resume_compares_flat_keys() -> None:
    with pytest.raises(CheckpointError, match=r"\n  optimizer.eps: saved 1e-06, now 0.5\n"):
        refuse_other_recipe(find_recipe(NAME), find_recipe(NAME, ["optimizer.eps=0.5"]), Path("step_00000001"))
