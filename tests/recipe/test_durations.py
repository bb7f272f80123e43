"""Durations that can mean nothing are refused, with the key path: intervals of zero, and parts of a run longer than the run."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from mmssl.core.config import Duration
from mmssl.core.errors import RecipeError
from mmssl.recipe.annotations import field_annotation
from mmssl.recipe.describe import registered
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe

RECIPE = "quickstart/image_text"


@pytest.mark.parametrize("zero", ["0 steps", "0.0 percent"])
@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("log.every", "log.every=%s"),
        ("save.every", "save.every=%s"),
        ("evaluators.validation.every", "evaluators.validation.every=%s"),
        ("duration", "duration=%s"),
        ("resolution.image.0.until", "resolution.image=[{size: 16, until: %s}]"),
        ("schedule.over", "schedule={kind: linear, over: %s}"),
        ("schedule.cooldown", "schedule={kind: constant, cooldown: %s}"),
    ],
)
def test_intervals_of_zero_are_refused(key: str, override: str, zero: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(RECIPE, [override % zero])
    assert f": {key}: got '{Duration(zero)}', wanted more than 0" in str(caught.value)


def test_a_warmup_of_zero_is_none() -> None:
    assert find_recipe(RECIPE, ["schedule={kind: constant, warmup: 0 steps}"]).training.schedule.warmup == Duration(
        "0 steps"
    )


@pytest.mark.parametrize("text", ["1e-9 epochs", "1e-9 percent", "1e-9 steps", "1e-9 samples"])
def test_the_shortest_duration_is_a_step(text: str) -> None:
    assert Duration(text).steps(batch_size=32, epoch_samples=100, total_steps=50) == 1


def test_a_rate_stays_between_nothing_and_the_peak() -> None:
    with pytest.raises(RecipeError, match=r": schedule: got final 1\.5, wanted at most 1$"):
        find_recipe(RECIPE, ["schedule={kind: cosine, final: 1.5}"])


def test_no_interval_of_a_recipe_may_be_zero() -> None:
    """Of all keys `every`, and those that end in it, also of configs to come."""
    fields = {
        (config.__name__, name): field_annotation(field)
        for config in registered(Recipe)
        for name, field in config.model_fields.items()
        if name == "every" or name.endswith("_every")
    }
    assert {("LogConfig", "every"), ("SaveConfig", "every"), ("ZeroShotConfig", "every")} <= fields.keys()
    for annotation in fields.values():
        adapter = TypeAdapter(annotation)
        adapter.validate_json('"1 steps"')
        with pytest.raises(ValidationError, match="got '0 steps', wanted more than 0"):
            adapter.validate_json('"0 steps"')
