"""The model of a run that has just ended is the one that `load` gives, and nothing is built a second time for it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from mmssl.core.plan import Plan
from mmssl.recipe.load import load, trained
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe, load_recipe
from mmssl.training.checkpoints.read import BEST, FOLDER, folder_name, step_of
from mmssl.training.run import Run
from tests.pipelines.conftest import World

AVERAGED = "ema={decay: 0.5}"


def ended(world: World, tmp_path: Path, *overrides: str) -> tuple[Recipe, Run]:
    recipe = load_recipe(world.recipe, [f"output={tmp_path}", "evaluators={}", "compile=off", *overrides])
    run = recipe.build(recipe.training.launch())
    run.train()
    return recipe, run


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.embedding.state_dict().items()}


@pytest.mark.parametrize("overrides", [[], [AVERAGED]], ids=["weights", "average"])
@pytest.mark.parametrize("best", [None, 3], ids=["last", "best"])
def test_it_is_what_load_gives(world: World, tmp_path: Path, overrides: list[str], best: int | None) -> None:
    recipe, run = ended(world, tmp_path, *overrides)
    if best is not None:
        (recipe.folder / FOLDER / BEST).write_text(folder_name(best))
    loaded = load(recipe.folder)
    other = weights(load(recipe.folder / FOLDER / folder_name(6 if best else 3)))
    with mock.patch.object(Recipe, "build_learner", side_effect=AssertionError("built again")):
        model = trained(recipe, run)
    assert model.checkpoint is not None
    assert loaded.checkpoint is not None
    assert step_of(model.checkpoint) == step_of(loaded.checkpoint) == (best or 6)
    ours, theirs = weights(model), weights(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert any(not torch.equal(x, other[name]) for name, x in ours.items()), "the two checkpoints differ"
    assert not model.embedding.training
    assert not any(p.requires_grad for p in model.embedding.parameters())
    words = ["the digit four", "a photo of the digit seven"]
    assert torch.equal(model.encode(text=words)["text"], loaded.encode(text=words)["text"])


def test_the_last_state_is_not_read_again(world: World, tmp_path: Path) -> None:
    recipe, run = ended(world, tmp_path)
    with mock.patch("mmssl.recipe.load.load_weights", side_effect=AssertionError("read again")):
        assert trained(recipe, run).embedding.encoders["image"] is run.state.learner.encoders["image"]


def test_a_compiled_run_gives_a_model_that_runs_as_written(world: World, tmp_path: Path) -> None:
    recipe, run = ended(world, tmp_path)
    called: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        called.append(graph)
        return graph.forward

    for encoder in run.state.learner.encoders.values():
        encoder.compile(backend=backend)
    trained(recipe, run).encode(text=["the digit four"])
    assert not called


def test_pretraining_builds_the_model_once(world: World, tmp_path: Path) -> None:
    built = []
    build = Recipe.build_learner

    def counted(recipe: Recipe, *arguments: object) -> object:
        built.append((recipe.name, arguments[1]))
        return build(recipe, *arguments)  # type: ignore[arg-type]

    with mock.patch.object(Recipe, "build_learner", counted):
        assert world.pretrain(f"output={tmp_path}", "name=once") == 0
    assert built == [("once", Plan(total_steps=6, batch_size=16, samples=64))]
    assert "gallery" in (tmp_path / "once/report.html").read_text().lower()
