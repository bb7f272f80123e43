"""A run on a pretended CUDA device, from the first step to what is done with its model: everything stays where it must."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmssl
from mmssl.training.runtime import kernels
from tests.pipelines.conftest import RECIPE, World
from tests.pretended.cuda import pretended_cuda

PAIR = ["image", "text"]


def recipe(folder: Path, world: World, **changes: Any) -> Path:
    """Four steps on the device, a checkpoint after two."""
    every = {"every": "4 steps", "shards": [str(world.shards / "test")], "workers": 0}
    train = {"modality": "image", "train_shards": [str(world.shards / "train")]}
    settings = {"device": "cuda", "duration": "4 steps", "save": {"every": "2 steps"}, "output": str(folder)}
    values = copy.deepcopy(RECIPE) | settings | {"data": {"shards": [str(world.shards / "train")], "workers": 0}}
    values["modalities"]["label"] = {"kind": "label"}
    values["evaluators"] = {
        "retrieval": {"kind": "retrieval", "pair": PAIR, **every},
        "probe": {"kind": "linear_probe", **train, **every},
        "knn": {"kind": "knn", **train, **every},
        "shots": {"kind": "few_shot", **train, "shots": [1], "draws": 2, **every},
        "calibration": {"kind": "calibration", "pair": PAIR, "negatives": 2, "resamples": 100, **every},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values | changes))
    return path


@pytest.fixture(autouse=True)
def kernels_are_chosen_for_a_test() -> Any:
    yield
    torch.use_deterministic_algorithms(False)
    kernels.choose_kernels("fp32", deterministic=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16", "step": {"kind": "cached", "micro_batches": 2}, "clip_norm": 1.0, "ema": {"decay": 0.5}},
        {"precision": "bf16", "deterministic": True, "resolution": {"image": [{"size": 16, "until": "3 steps"}]}},
        {"precision": "tf32", "optimizer": {"kind": "lars", "lr": 0.01}, "ema": {"decay": 0.5}},
        {
            "optimizer": {"kind": "adamw", "lr": 0.001, "fused": False},
            "lora": {"image": {"rank": 2}, "text": {"rank": 2}},
        },
        {
            "modalities": RECIPE["modalities"]
            | {
                "image": {"kind": "image", "size": 32, "views": {"crop": {"kind": "simclr", "where": "device"}}},
                "label": {"kind": "label"},
            }
        },
    ],
    ids=["cached", "deterministic", "lars", "lora", "device views"],
)
def test_runs_end_and_are_evaluated(changes: dict[str, Any], world: World, tmp_path: Path) -> None:
    if "lora" in changes:
        pytest.importorskip("peft")
    with pretended_cuda():
        assert world.pretrain(recipe=recipe(tmp_path, world, **changes)) == 0
        model = mmssl.load(tmp_path / "tiny", device="cuda")
        assert {x.device.type for x in model.embedding.state_dict().values()} == {"cuda"}
    scores = [json.loads(line) for line in (tmp_path / "tiny/metrics.jsonl").read_text().splitlines()]
    named = {key.split("/")[0] for line in scores for key in line}
    assert {"retrieval", "probe", "knn", "shots", "calibration"} <= named
    assert not [key for line in scores for key in line if key.endswith("/error")]


@pytest.mark.slow
def test_what_is_done_with_a_model(world: World, tmp_path: Path) -> None:
    run, test = world.copy_of_run(tmp_path / "run"), world.shards / "test"
    with pretended_cuda():
        assert (
            world.mmssl("evaluate", run, "--calibrate", test, "--pair", "image,text", "--out", tmp_path / "c.json") == 0
        )
        assert world.mmssl("evaluate", run, "--relations", test, "--out", tmp_path / "r.json") == 0
        assert world.mmssl("embed", run, "--shards", test, "--out", tmp_path / "rows") == 0
        assert world.mmssl("search", tmp_path / "rows", "a zero", "--modality", "image") == 0
        assert world.mmssl("average", run, run, "--weights", "0.5,0.5", "--out", tmp_path / "average") == 0
        assert world.mmssl("export", run, "--out", tmp_path / "exported", "--samples", test) == 0
        assert world.mmssl("report", run) == 0
        assert mmssl.load(run, device="cuda").match(image=picture(), text=["a zero"]).shape == (1, 1)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_a_model_on_the_device_answers_as_on_the_cpu(world: World) -> None:
    texts = ["a zero", "a one"]
    answers = []
    for device in ("cpu", "cuda"):
        with pretended_cuda():
            model = mmssl.load(world.run, device=device)
            assert model.embedding.device.type == device
            rows = model.encode(image=[picture()] * 2, text=texts)
            known, nearest = rows["image"].to(device), model.nearest(text=texts, image=picture())
            others = [model.features(image=picture())["image"], model.similarity(known, text=texts)]
            classes = model.classify(picture(), ["zero", "one"])
            answers.append([*rows.values(), nearest.indices, nearest.cosines, classes.probabilities, *others])
    for found, expected in zip(answers[1], answers[0], strict=True):
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
