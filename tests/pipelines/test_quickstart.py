"""The quickstart from shards to report in two steps; and its parts: which recipe, where its data lie, what the table says."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mmssl
from mmssl.core.errors import RecipeError
from mmssl.data.shards.index import ShardIndex
from mmssl.datasets import digit_scenes, heart, land, moving_scenes
from mmssl.recipe import shipped
from mmssl.recipe.load import start_of
from mmssl.recipe.recipe import Recipe, load_recipe
from mmssl.recipe.shipped import find_recipe
from pipelines import cli
from pipelines.command import guarded
from pipelines.quickstart import CLIPS, RECIPES, recipe_for, relocated, table_rows, write_shards

SCENES = {"train": 32, "validation": 8, "test": 16}
SHORT = ["duration=2 steps", "batch_size=16", "data.workers=0", "schedule.warmup=0 steps", "log.every=1 steps"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scenes, two steps on them, and probes with one penalty."""

    def shorter(name: str, overrides: Sequence[str] = ()) -> Recipe:
        probes = [key for key, config in find_recipe(name).evaluators.items() if config.kind == "linear_probe"]
        return find_recipe(name, [*SHORT, *(f"evaluators.{key}.penalties=[1.0]" for key in probes), *overrides])

    monkeypatch.setattr(shipped, "find_recipe", shorter)
    for module in (digit_scenes, land, heart):
        monkeypatch.setattr(module, "write", partial(module.write, **SCENES, shards=1))
    for split, clips in SCENES.items():
        monkeypatch.setitem(CLIPS, split, clips // 8)


def test_it_makes_shards_trains_evaluates_and_reports(
    short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert guarded(cli.full(), ["quickstart", "--out", str(out)]) == 0
    recipe = load_recipe(out / "run/recipe.yaml")
    results = json.loads((out / "results.json").read_text())
    seconds = results.pop("seconds")
    assert list(seconds) == ["shards", "total", "untrained_probe", "pretrain", "report"]
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=0.1)

    untrained, model = results["linear_probe"].pop("untrained_acc1"), start_of(recipe)
    with recipe.build_evaluators(model.modalities)["linear_probe"][0] as probe:
        assert dict(probe.evaluate(model.embedding))["acc1"] == untrained

    assert list(results) == list(recipe.evaluators)
    logged: dict[str, object] = {}
    for line in (out / "run/metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    for name, scores in results.items():
        assert scores
        assert {f"{name}/{metric}": value for metric, value in scores.items()}.items() <= logged.items()

    said = capsys.readouterr()
    for name in recipe.evaluators.keys() - {"validation"}:
        for row in table_rows(recipe.evaluators[name], {**results[name], "untrained_acc1": 0.5}):
            assert row[0] in said.out
    assert f"next: mmssl evaluate {out / 'run'}" in " ".join(said.err.split())
    report = (out / "report.html").read_text()
    assert all(name in report for name in recipe.evaluators)


def test_moving_pictures_are_made_where_their_recipe_reads_them(short: None, tmp_path: Path) -> None:
    write_shards("quickstart/video_audio", tmp_path, None)
    data = find_recipe("quickstart/video_audio", relocated(find_recipe("quickstart/video_audio"), tmp_path)).data
    assert len(ShardIndex.open(data.shards)) == CLIPS["train"]


@pytest.mark.parametrize("modality", ["array", "series"])
def test_arrays_and_series_are_trained_measured_and_embedded(short: None, modality: str, tmp_path: Path) -> None:
    """From shards to report: a pair with captions, zero-shot classes, retrieval and a linear probe; then `mmssl.load`."""
    out = tmp_path / "out"
    assert guarded(cli.full(), ["quickstart", "--modalities", f"{modality},text", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {"zero_shot", "retrieval", "linear_probe"} <= results.keys()
    assert 0 <= results["linear_probe"]["acc1"] <= 1
    assert (out / "report.html").stat().st_size > 10_000
    model = mmssl.load(out / "run")
    made = land.encode_land(land.sample_land("test", 0), "k") if modality == "array" else None
    made = made or heart.encode_record(heart.sample_record("test", 0), "k")
    embedded = model.encode(**{modality: [made["npy"], np.load(io.BytesIO(made["npy"]))]})[modality]
    assert embedded.shape == (2, 64)
    assert torch.allclose(embedded[0], embedded[1], atol=1e-6)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(2), atol=1e-5)


def test_modalities_choose_the_recipe_in_any_order() -> None:
    assert recipe_for("text, image") == "quickstart/image_text"
    assert recipe_for("audio,text,image") == "quickstart/image_text_audio"
    with pytest.raises(RecipeError, match="got 'image,smell', wanted one of: image,text; image,text,audio"):
        recipe_for("image,smell")


@pytest.mark.parametrize("name", RECIPES.values())
def test_every_folder_of_the_recipe_is_turned_to_the_one_at_hand(name: str, tmp_path: Path) -> None:
    recipe = find_recipe(name, relocated(find_recipe(name), tmp_path))
    folders = [*recipe.data.shards]
    for evaluator in recipe.evaluators.values():
        folders += [*evaluator.shards, *getattr(evaluator, "train_shards", ())]
    assert len(folders) > 3
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)


@pytest.mark.parametrize("name", RECIPES.values())
def test_shards_are_written_where_the_recipe_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    for module in (digit_scenes, moving_scenes, land, heart):
        monkeypatch.setattr(module, "write", lambda folder, **settings: written.append(folder))
    write_shards(name, tmp_path, None)
    (read,) = find_recipe(name, relocated(find_recipe(name), tmp_path)).data.shards
    assert written == [Path(read).parent]


def test_the_table_names_chance_and_ceiling() -> None:
    recipe = find_recipe("quickstart/image_text")
    way = {"R@1": 0.3, "R@1_chance": 0.005, "R@1_ceiling": 0.76}
    scores = {f"{a}_{name}": value for a in ("image_to_text", "text_to_image") for name, value in way.items()}
    rows = table_rows(recipe.evaluators["retrieval"], {**scores, "n": 200})
    assert rows[0] == ("image to text R@1 of 200", "0.300", "chance 0.005, at most 0.760: captions repeat")
    rows = table_rows(recipe.evaluators["linear_probe"], {"acc1": 0.97, "untrained_acc1": 0.4})
    assert rows == [("image: linear probe accuracy", "0.970", "untrained encoder 0.400")]


def test_the_table_says_what_is_heard_of_moments_and_sides() -> None:
    recipe = find_recipe("quickstart/video_audio")
    offset, sides = (recipe.evaluators[name] for name in ("in_sync", "sides"))
    assert offset.kind == "offset"
    curve = {f"R@1_at_{seconds:g}": 0.5 - 0.1 * number for number, seconds in enumerate(offset.offsets)}
    rows = table_rows(offset, {"in_sync_acc": 0.75, "in_sync_chance": 0.2, "n": 200, **curve})
    assert rows == [
        ("video: own moment of the audio found", "0.750", "chance 0.200"),
        (
            "video to audio R@1 of 200, in sync",
            "0.500",
            "audio late by 0.1, 0.25, 0.5, 1 s: 0.400, 0.300, 0.200, 0.100",
        ),
    ]
    rows = table_rows(sides, {"acc": 0.93, "chance": 0.5})
    assert rows == [("video: audio told from its mirror image", "0.930", "chance 0.500")]


def test_clips_are_long_enough_for_every_offset() -> None:
    recipe = find_recipe("quickstart/video_audio")
    offset, video = recipe.evaluators["in_sync"], recipe.modalities["video"]
    assert offset.kind == "offset"
    assert offset.seconds + offset.offsets[-1] <= CLIPS["seconds"]
    assert (video.size, video.frames) == (CLIPS["size"], offset.seconds * CLIPS["fps"]), "every frame is seen"
