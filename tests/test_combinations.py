"""Every objective takes a step on each modality that its row in mmssl/objectives/README.md names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from mmssl.training.runtime.signals import StopSignals
from tests.test_configs import shards as shards

ROWS = (Path(__file__).parent.parent / "mmssl/objectives/README.md").read_text().split("## Published methods")[0]
SMALL = {"width": 32, "depth": 2, "heads": 2}
MEL = {"kind": "mel", "rate": 8000, "window": 256, "hop": 125, "mels": 32, "low": 20.0, "high": 4000.0, "floor": 1e-10}
LAND = {"mean": [1935, 2127, 2060, 2895], "std": [2763, 2729, 2729, 2373]}
MODALITIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "image": ("scenes", {"size": 32}, {"kind": "vit", "size": 32, "patch_size": 8}, 192),
    "array": (
        "land", {"size": 32, "axes": ["channel", "height", "width"], "channels": 4},
        {"kind": "vit", "size": 32, "patch_size": 8, **LAND}, 256,
    ),
    "audio": (
        "scenes", {"rate": 8000, "seconds": 0.99, "channels": "mono", "pad": "zero"},
        {"kind": "audio_transformer", "front_end": MEL, "seconds": 0.99, "patch_size": [32, 2]}, 64,
    ),
    "video": (
        "clips", {"size": 32, "frames": 8, "seconds": 1.0, "fps": 8},
        {"kind": "space_time", "size": 32, "frames": 8, "patch_size": 8, "tubelet": 2}, 384,
    ),
    "series": (
        "heart", {"axes": ["time", "channel"], "rate": 100, "channels": 3, "seconds": 4.0},
        {"kind": "series_transformer", "channels": 3, "rate": 100, "seconds": 4.0, "strides": [5, 2], "overlap": False}, 30,
    ),
}  # fmt: skip
"""Modality -> folder of its shards, settings, settings of its encoder, and numbers of a token."""
PATCHES = {"patch_size": 8}
CROPS = {"image": "resized_crop", "array": "resized_crop", "video": "clip"}
GRIDS = {"image": PATCHES, "array": PATCHES, "video": PATCHES | {"tubelet": 2}}
TOKENS = {"audio": {"tokens": 32}, "series": {"tokens": 40}}
MLP = {"kind": "mlp", "layers": 2, "hidden": 32, "norm": "batch"}
LINEAR: dict[str, Any] = {"kind": "linear"}
TWO: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.2, "head": MLP},
    "simsiam": {"head": MLP | {"norm_last": True}, "predictor": MLP},
    "byol": {"momentum": 0.9, "head": MLP, "predictor": MLP},
    "moco_v2": {"temperature": 0.2, "queue": 16, "momentum": 0.9, "head": MLP | {"norm": "none"}},
    "moco_v3": {"temperature": 0.2, "momentum": 0.9, "head": MLP, "predictor": MLP},
    "nnclr": {"temperature": 0.1, "queue": 16, "head": MLP, "predictor": MLP},
    "dino": {
        "momentum": 0.9, "temperature": 0.1, "teacher_temperature": 0.04, "targets": {"kind": "centring"}, "prototypes": 16,
        "head": MLP | {"norm": "none"},
    },
    "swav": {"temperature": 0.1, "code_temperature": 0.05, "prototypes": 8, "head": MLP},
    "deepcluster_v2": {"temperature": 0.1, "prototypes": 4, "head": MLP},
    "lejepa": {"views": 2, "sigreg_weight": 0.05, "head": MLP},
}  # fmt: skip
"""Objectives on two views, with embeddings of one size."""


def pretext(modality: str) -> tuple[dict[str, Any], int]:
    """Settings of a task, and the number of its labels."""
    tasks: dict[str, dict[str, Any]] = {"video": {"kind": "speed", "axis": 0}, "audio": {"kind": "arrow", "axis": 1}}
    task = tasks.get(modality) or ({"kind": "order", "axis": 1} if modality == "series" else {"kind": "rotation"})
    return {"task": task, "predictor": LINEAR}, {"order": 12, "rotation": 4}.get(task["kind"], 2)


def masked(kind: str, values: int) -> dict[str, Any]:
    """Settings of objectives on masked or noisy views."""
    codes = {
        "kind": "codes", "rows": {"kind": "patches", "values": values, "normalise": True},
        "quantizer": {"kind": "kmeans", "codes": 8, "rows": 64},
    }  # fmt: skip
    layers = {"layers": 2, "outputs": "mlps", "norm": "instance", "norm_mean": False, "over_features": "sqrt"}
    settings: dict[str, dict[str, Any]] = {
        "mae": {"patch_values": values, "decoder": {"width": 16, "depth": 1, "heads": 2}},
        "denoise": {"noise": {"kind": "gaussian"}, "patch_values": values, "predictor": LINEAR},
        "masked_prediction": {"mask": "mask", "targets": codes, "predictor": LINEAR},
        "latent_prediction": {"mask": "mask", **layers, "beta": None, "momentum": 0.9},
        "jepa": {"masks": ["mask"], "predictor": {"width": 16, "depth": 1, "heads": 2}, "beta": 1.0, "momentum": 0.9},
        "self_labels": {"labelling": {"kind": "optimal_transport"}, "labels": 4},
    }
    return settings[kind]


def cases() -> list[tuple[str, str]]:
    """Objective and modality, of all rows of objectives on one modality that name several."""
    found = []
    for kind, needs in re.findall(r"^\| `(\w+)` \| (.*?) \|", ROWS, re.MULTILINE):
        for named in re.findall(r"\((image, array, audio, video, series)[;)]", needs):
            found += [(kind, modality) for modality in named.split(", ")]
    return found


def test_rows_name_modalities() -> None:
    kinds = {kind for kind, _ in cases()}
    assert kinds == {*TWO, "mae", "denoise", "masked_prediction", "latent_prediction", "jepa", "self_labels", "pretext"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "modality"), cases(), ids="-".join)
def test_it_steps(kind: str, modality: str, shards: Path, tmp_path: Path) -> None:
    folder, settings, encoder, values = MODALITIES[modality]
    views: dict[str, dict[str, Any]] = {"crop": {"kind": CROPS.get(modality, "random_window")}}
    objective = {"kind": kind, "modality": modality, "view": "crop"}
    if kind in TWO:
        objective |= {"embedding": 16, **TWO[kind]}
    elif kind == "pretext":
        made, count = pretext(modality)
        objective |= made
        views["choice"] = {"kind": "choice", "choices": count}
    else:
        objective |= masked(kind, values)
    if kind == "mae":
        views["order"] = {"kind": "order", **(GRIDS.get(modality) or TOKENS[modality])}
    if {"mask", "masks"} & objective.keys():
        blocks = (
            {"kind": "blocks", "smallest": 1, **GRIDS[modality]}
            if modality in GRIDS
            else {"kind": "spans", "length": 4}
        )
        views["mask"] = blocks | TOKENS.get(modality, {})
    recipe = {
        "name": "x", "seed": 0, "duration": "2 steps", "batch_size": 8, "output": str(tmp_path), "device": "cpu",
        "precision": "bf16",
        "modalities": {modality: {"kind": modality, **settings, "views": views}},
        "data": {"shards": [str(shards / folder / "train")], "workers": 0},
        "encoders": {modality: encoder | SMALL | ({} if modality == "video" else {"pool": "mean"})},
        "objective": objective, "optimizer": {"kind": "adamw", "lr": 1e-3}, "schedule": {"kind": "constant"}, "evaluators": {},
    }  # fmt: skip
    made_recipe = validate_text(Recipe, json.dumps(recipe), kind)
    launch = made_recipe.training.launch()
    run = made_recipe.build(launch)
    try:
        run.state.learner.train()
        run.refresh(run.state, run.save, StopSignals())
        assert run.step(run.state, next(iter(run.state.stream))).finite
    finally:
        run.state.stream.close()
        launch.close()
