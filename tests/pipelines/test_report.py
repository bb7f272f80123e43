"""`mmssl report`: the report of a run anew, with what was measured since, also where the run folder was moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.conftest import World


def test_what_was_measured_since_stands_in_the_report(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, results = world.shards / "test", tmp_path / "results"
    arguments = ("--retrieval", test, "--calibrate", test, "--out", results)
    run = world.copy_of_run(tmp_path / "moved")
    assert world.mmssl("evaluate", run, *arguments) == 0
    out, figures = tmp_path / "new.html", tmp_path / "figures"
    assert (
        world.mmssl("report", run, "--results", results, "--compare", world.run, "--out", out, "--figures", figures)
        == 0
    )
    html = out.read_text()
    for words in (
        "Embedding map",
        "Calibration",
        "Samples that took no part",
        "Beside tiny",
        "Data",
        "Environment",
        "Recipe",
    ):
        assert f"<h2>{words}</h2>" in html, words
    assert "retrieval: image → text" in html
    assert f"training: {world.shards / 'train'}" in html
    assert "retrieval, calibration: " in html
    metrics = json.loads((figures / "metrics.json").read_text())
    assert metrics["calibration"]["n"] == 32
    assert any(path.name.endswith("probability_of_a_match.png") for path in figures.iterdir())
    assert len(html) < 10e6
    assert world.mmssl("report", run, "--results", tmp_path / "nothing") == 3
    assert "has no results" in capsys.readouterr().err.replace("\n", " ")


def test_figures_of_a_run_go_to_its_trackers(world: World, tmp_path: Path) -> None:
    """A finished run has nothing to train, and its report, figures and pictures are made."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    world.copy_of_run(tmp_path / world.run.name)
    assert world.pretrain(f"output={tmp_path}", "log.pictures=true", "log.trackers=[tensorboard]") == 0
    run = tmp_path / world.run.name
    files = sorted(path.stem for path in (run / "figures").glob("*.png"))
    assert any("Loss" in name for name in files)
    shown = set()
    for path in run.rglob("events.out.tfevents.*"):
        shown |= set(accumulator.EventAccumulator(str(path)).Reload().Tags()["images"])
    assert shown == {f"figures/{name}" for name in files}
