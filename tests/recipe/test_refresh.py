"""A recipe whose objective reads all samples before the first step: trained, resumed, evaluated, loaded and started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.errors import RecipeError
from mmssl.losses.deepcluster import UNASSIGNED
from mmssl.recipe.load import load
from mmssl.recipe.recipe import Recipe, load_recipe
from mmssl.training.run import Run
from tests.pipelines.conftest import World

OBJECTIVE = {
    "kind": "deepcluster_v2", "modality": "image", "view": "augmented", "prototypes": 6, "clusterings": 2, "temperature": 0.1,
    "every": "3 steps", "embedding": 8, "head": {"kind": "mlp", "hidden": 16, "norm": "batch"},
}  # fmt: skip
IMAGE = {"kind": "image", "size": 32, "views": {"augmented": {"kind": "simclr"}}}
SAVE = {"every": "1 steps", "keep_last": 9}


def recipe(world: World, folder: Path, **changes: Any) -> Recipe:
    values = json.loads(world.recipe.read_text())
    knn = {
        "kind": "knn",
        "train_shards": [str(world.shards / "train")],
        "shards": [str(world.shards / "test")],
        "modality": "image",
    }
    values |= {
        "modalities": {"image": IMAGE},
        "encoders": {"image": values["encoders"]["image"]},
        "output": str(folder),
    }
    values |= {"objective": OBJECTIVE, "duration": "7 steps", "evaluators": {"knn": knn}, "save": SAVE, **changes}
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return load_recipe(folder / "recipe.yaml")


def trained(made: Recipe, resume: str = "auto") -> Run:
    run = made.build(made.training.launch())
    run.train(resume)
    return run


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in run.state.learner.state_dict().items()}


def test_it_trains_resumes_bit_by_bit_and_loads(world: World, tmp_path: Path) -> None:
    """From checkpoints at a clustering and between two."""
    whole = trained(recipe(world, tmp_path))
    expected = state(whole)
    assert expected["objective.bank.rows"].shape == (64, 2, 8)
    assert (expected["objective.clusterings.clusters"] != UNASSIGNED).all()
    assert 1 < expected["objective.clusterings.perplexity"] <= 6
    assert "knn/acc1" in whole.state.scores
    for step in (3, 5):
        again = trained(recipe(world, tmp_path, name="again"), str(whole.folder / f"checkpoints/step_{step:08d}"))
        found = state(again)
        assert not [name for name, x in expected.items() if not torch.equal(found[name], x)], step
    loaded = load(whole.folder).embedding.encoders["image"].state_dict()
    assert all(torch.equal(x, expected[f"encoders.image.{name}"]) for name, x in loaded.items())
    assert world.mmssl("evaluate", whole.folder) == 0


def test_a_run_starts_from_encoders_of_another_data_set(world: World, tmp_path: Path) -> None:
    first = trained(recipe(world, tmp_path, duration="2 steps"))
    encoder = json.loads(world.recipe.read_text())["encoders"]["image"] | {"weights": str(first.folder)}
    data = {"shards": [str(world.shards / "test")], "workers": 0}
    other = recipe(world, tmp_path, name="other", encoders={"image": encoder}, data=data)
    assert len(state(trained(other))["objective.bank.rows"]) == 32


def test_more_prototypes_than_samples_are_refused(world: World, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, objective=OBJECTIVE | {"prototypes": 65})
    with pytest.raises(
        RecipeError, match="objective: prototypes: got 65, wanted at most 64, the number of training samples"
    ):
        made.build(made.training.launch())
