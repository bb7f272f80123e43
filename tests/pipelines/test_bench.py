from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.data.shards.index import ShardIndex
from mmssl.datasets import moving_scenes
from tests.data.make import encode, noise, pairs, write
from tests.pipelines.conftest import World


def test_stages_of_shards(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = pairs(0, 40)
    records[7]["jpg"] = b"broken"
    shard, out = write(tmp_path / "a.tar", records), tmp_path / "speed.json"
    options = ("--workers", 0, "--seconds", 0.1, "--size", 32, "--batch-size", 8, "--json", out)
    assert world.mmssl("bench", "data", shard, *options) == 0
    report = json.loads(out.read_text())
    assert report["stages"].keys() == {"read", "decode", "views", "collate"}
    assert all(value > 0 for value in report["stages"].values())
    assert report["samples"] + report["unusable"] <= 40
    assert report["batch_bytes"] == 3 * 32 * 32 + 77 * 8 + 8
    assert report["rate"] > 0
    assert 0 < report["share"] < 1
    text = capsys.readouterr().out
    assert "decode" in text
    assert "samples/s" in text


def test_changes_need_a_recipe(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("bench", "data", world.shards / "train", "data.workers=1") == 2
    assert (
        "got 'data.workers=1' beside shards, wanted a recipe to change: name one, or use --workers"
        in capfd.readouterr().err
    )


def test_a_recipe_with_workers(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    changes = ("data.workers=1", "data.start_method=fork")
    assert world.mmssl("bench", "data", world.recipe, *changes, "--seconds", 0.1, "--json", out) == 0
    report = json.loads(out.read_text())
    assert (report["workers"], report["batch_size"]) == (1, 16)
    assert report["stages"]["hand-over"] > 0
    figures = report["headspace"]
    assert figures["batch_size"] == 16
    assert figures["hours"] == pytest.approx(figures["total_steps"] / figures["steps_per_second"] / 3600)
    assert 0 <= figures["gain_hours"] < figures["hours"]
    said = capsys.readouterr().out
    assert "perfect loader" in said
    assert "input-bound" in said
    assert not list(tmp_path.glob("runs*")), "nothing is written"


def test_shards_that_need_a_recipe(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write(tmp_path / "a.tar", [{"__key__": "a", "tiff": encode(noise(0))}])
    assert world.mmssl("bench", "data", shard) == 3
    assert "give a recipe" in capsys.readouterr().err


def test_sources_and_synchronized_operations_are_measured_as_trained(world: World, tmp_path: Path) -> None:
    values = json.loads(world.recipe.read_text())
    values["data"] = {
        "sources": {
            "many": {"shards": [str(world.shards / "train")], "weight": 1.0},
            "few": {"shards": [str(world.shards / "validation")], "weight": 3.0},
        },
        "workers": 0,
        "audit": str(tmp_path / "audit"),
        "synchronized": [{"kind": "flip"}],
    }
    recipe, out = tmp_path / "mixed.yaml", tmp_path / "speed.json"
    recipe.write_text(json.dumps(values))
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        read = ShardIndex.read

        def note(self: ShardIndex, number: int, extensions: Any) -> Any:
            opened.extend([self.source] if "jpg" in extensions else [])  # not the texts that are looked at before
            return read(self, number, extensions)

        patch.setattr(ShardIndex, "read", note)
        assert world.mmssl("bench", "data", recipe, "--no-train", "--seconds", 0.1, "--json", out) == 0
    report = json.loads(out.read_text())
    assert "headspace" not in report
    assert report["stages"].keys() == {"read", "decode", "synchronized", "views", "collate"}
    assert report["stages"]["synchronized"] > 0
    assert opened.count("few") > 2 * opened.count("many") > 0
    assert not (tmp_path / "audit").exists()


def test_videos_without_a_recipe(world: World, tmp_path: Path) -> None:
    moving_scenes.write(tmp_path, train=4, validation=0, test=0, shards=1, size=32, seconds=1.0, wav=True)
    out = tmp_path / "speed.json"
    options = ("--workers", 0, "--seconds", 0.1, "--size", 16, "--batch-size", 2, "--json", out)
    assert world.mmssl("bench", "data", tmp_path / "train", *options) == 0
    clip, sound, caption = 8 * 3 * 16 * 16, 2 * 160_000, 8 * 77
    assert json.loads(out.read_text())["batch_bytes"] >= clip + sound + caption


def test_a_run_folder_is_measured_by_its_recipe(world: World, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "speed.json"
    run.mkdir()
    (run / "recipe.yaml").write_text(world.recipe.read_text())
    changes = ("data.workers=0", "--no-train", "--seconds", 0.1, "--json", out)
    assert world.mmssl("bench", "data", run, *changes) == 0
    assert json.loads(out.read_text())["batch_size"] == 16
