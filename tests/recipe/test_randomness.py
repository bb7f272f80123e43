"""The caller's random generators are the caller's: building and loading draw from seeded ones of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmssl
from mmssl.core.plan import Plan
from mmssl.core.torch_seeding import seeded
from mmssl.recipe.load import start_of
from tests.pipelines.conftest import World


def draws() -> tuple[Any, ...]:
    """What each global generator would give next; none of them moves."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    drawn = torch.rand(()).item(), np.random.rand(), random.random()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    return drawn


ACTIONS: dict[str, Callable[[World, Path], object]] = {
    "load": lambda world, folder: mmssl.load(world.run),
    "find_recipe": lambda world, folder: mmssl.find_recipe(str(world.recipe)),
    "start_of": lambda world, folder: start_of(mmssl.find_recipe(str(world.recipe))),
    "encode": lambda world, folder: mmssl.load(world.run).encode(text=["one"]),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_generators_stay_as_they_are(world: World, tmp_path: Path, action: str) -> None:
    before = draws()
    ACTIONS[action](world, tmp_path)
    assert draws() == before


def test_initial_weights_are_those_of_the_seed_whatever_generator_an_encoder_draws_from() -> None:
    def drawn(*parts: int | str) -> tuple[float, ...]:
        with seeded(*parts):
            return torch.rand(()).item(), np.random.rand(), random.random()

    first, again, other = drawn(0, "weights"), drawn(0, "weights"), drawn(1, "weights")
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_seed_of_the_recipe_draws_all_its_initial_weights() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        recipe = mmssl.find_recipe("quickstart/image_text", [f"seed={seed}"])
        return dict(recipe.build_learner(recipe.build_modalities(), Plan.unknown()).named_parameters())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    drawn = {name for name, x in first.items() if x.ndim > 1}
    assert {name.rsplit(".", 2)[0] for name in drawn} >= {"objective.projections.image", "objective.projections.text"}
    assert not [name for name in sorted(drawn) if torch.equal(first[name], other[name])], "equal for both seeds"
    heads = (first[f"objective.projections.{name}.linear.weight"][:, :96] for name in ("image", "text"))
    assert not torch.equal(*heads), "one seed, and each weight its own draw"


def test_an_error_puts_them_back_too() -> None:
    before = draws()
    with pytest.raises(ZeroDivisionError), seeded(1):
        _ = torch.rand(3) / (1 // 0)
    assert draws() == before
