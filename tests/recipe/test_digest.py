"""The hash of a model changes with all that its answers depend on, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.evaluation.calibration import Calibration
from mmssl.recipe.calibrations import other_models, write_calibration
from mmssl.recipe.load import start_of
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from tests.pipelines.conftest import RECIPE


def build(*overrides: str) -> Model:
    text = json.dumps(RECIPE | {"data": {"shards": ["none"]}})
    return start_of(validate_text(Recipe, text, "test", overrides))


@pytest.fixture(scope="module")
def plain() -> Model:
    return build()


@pytest.mark.parametrize(
    "change",
    [
        "objective.temperature=0.06",
        "objective.loss=sigmoid",
        "encoders.image.mean=[0.4, 0.5, 0.5]",
        "encoders.image.std=[0.3, 0.3, 0.2]",
        "encoders.text.activation=quick_gelu",
        "modalities.image.fit=squash",
        "modalities.text.captions=lines",
        "seed=1",
    ],
)
def test_what_changes_answers(plain: Model, change: str) -> None:
    more = ["objective.bias=-10"] if "sigmoid" in change else []
    assert build(change, *more).digest() != plain.digest()


def test_biases_count_too() -> None:
    assert (
        build("objective.loss=sigmoid", "objective.bias=-10").digest()
        != build("objective.loss=sigmoid", "objective.bias=-9").digest()
    )


@pytest.mark.parametrize(
    "change",
    [
        "encoders.image.frozen=true",
        "encoders.text.checkpointing=true",
        "batch_size=8",
        "optimizer.lr=1e-4",
        "name=other",
    ],
)
def test_what_changes_none(plain: Model, change: str) -> None:
    assert build(change).digest() == plain.digest()


def test_each_tensor_counts(plain: Model) -> None:
    known, model = plain.digest(), build()
    assert model.digest() == known
    tensors: dict[str, Any] = {**dict(model.embedding.named_parameters()), **dict(model.embedding.named_buffers())}
    assert {"encoders.image.pixels.mean", "encoders.image.pixels.std"} <= tensors.keys()
    for name, tensor in tensors.items():
        with torch.no_grad():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert model.digest() != known, name
            tensor.copy_(before)
    assert model.digest() == known


def test_calibrations_of_other_models_are_said_to_be_there(tmp_path: Path) -> None:
    assert other_models(tmp_path, "new") == other_models(None, "new") == ""
    write_calibration(tmp_path, "old", ("image", "text"), Calibration(0.5, (0.0, 1.0), (0.1, 0.9)))
    assert other_models(tmp_path, "old") == ""
    assert other_models(tmp_path, "new") == (
        ", and calibration.json has some of other weights or settings, or by an earlier version"
    )
