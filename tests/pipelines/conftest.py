"""A tiny world for the command line: shards, a recipe, and a finished run, made once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmssl.datasets import digit_scenes
from mmssl.reporting import figures
from pipelines import cli
from pipelines.command import guarded

RECIPE = {
    "name": "tiny",
    "seed": 0,
    "duration": "6 steps",
    "batch_size": 16,
    "device": "cpu",
    "modalities": {
        "image": {"kind": "image", "size": 32, "views": {"crop": {"kind": "resized_crop"}}},
        "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 16}},
    },
    "encoders": {
        "image": {"kind": "vit", "size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2},
        "text": {"kind": "text_transformer", "context_length": 16, "width": 16, "depth": 1, "heads": 2},
    },
    "objective": {
        "kind": "clip",
        "pairs": [["image", "text"]],
        "views": {"image": "crop", "text": "tokens"},
        "embedding": 16,
        "temperature": 0.07,
    },
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "schedule": {"kind": "cosine", "warmup": "2 steps"},
    "save": {"every": "3 steps", "keep_last": 2},
    "log": {"every": "2 steps", "trackers": []},
}


@dataclass(frozen=True)
class World:
    """Where things are, and the command line as a function."""

    folder: Path
    shards: Path
    recipe: Path
    run: Path

    def mmssl(self, *arguments: object) -> int:
        """Run a command line in this process; returns its exit code."""
        return guarded(cli.full(), [str(argument) for argument in arguments])

    def pretrain(self, *overrides: str, recipe: Path | None = None) -> int:
        return self.mmssl("pretrain", recipe or self.recipe, *overrides)

    def copy_of_run(self, target: Path) -> Path:
        shutil.copytree(self.run, target)
        return target


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without curves, which take longer than a tiny run; `world` and tests/reporting draw them, programs do not either."""
    monkeypatch.setattr(figures, "chart_uri", lambda chart: "data:image/svg+xml;base64,")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("cli")
    digit_scenes.write(folder / "shards", train=64, validation=16, test=32, shards=2)
    values = RECIPE | {"output": str(folder / "runs"), "data": {"shards": [str(folder / "shards/train")], "workers": 0}}
    test = [str(folder / "shards/test")]
    values["evaluators"] = {
        "retrieval": {"kind": "retrieval", "every": "3 steps", "shards": test, "pair": ["image", "text"]}
    }
    recipe = folder / "tiny.yaml"
    recipe.write_text(json.dumps(values, indent=1))
    made = World(folder, folder / "shards", recipe, folder / "runs/tiny")
    assert made.pretrain() == 0
    return made
