"""What trackers are given: project, name, tags, and the run of before where a run is resumed. Nothing is sent anywhere."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from mmssl.core.errors import RecipeError
from mmssl.training.runtime import trackers
from mmssl.training.runtime.trackers import check_trackers, open_tracker

Started = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Trackers with the signatures of Accelerate's; (project, settings) of each that was started."""
    begun: Started = []

    def stand_in(original: Any) -> type:
        class Tracker:
            requires_logging_directory = original.requires_logging_directory

            def __init__(self, *arguments: Any, **settings: Any) -> None:
                inspect.signature(original.__init__).bind(self, *arguments, **settings)
                self.given = (str(arguments[0]), settings)

            def start(self) -> None:
                begun.append(self.given)
                self.active_run = SimpleNamespace(info=SimpleNamespace(run_id=f"run {len(begun)}"))

        return Tracker

    classes = {name: stand_in(made) for name, made in LOGGER_TYPE_TO_CLASS.items()}
    monkeypatch.setattr(trackers, "LOGGER_TYPE_TO_CLASS", classes)
    return begun


def test_a_resumed_run_goes_on_in_its_run_of_wandb(tmp_path: Path, started: Started) -> None:
    for step in (0, 7, 0):
        open_tracker("wandb", tmp_path, step, "scenes", ["small", "first"])
    (project, first), (_, resumed), (_, anew) = started
    assert project == "scenes"
    assert first["tags"] == ["small", "first"]
    assert (first["name"], first["resume"], first["dir"]) == (tmp_path.name, "allow", str(tmp_path))
    assert resumed == first
    assert anew["id"] != first["id"]


def test_mlflow_gives_the_id_itself(tmp_path: Path, started: Started) -> None:
    for step in (0, 7):
        open_tracker("mlflow", tmp_path, step, "scenes", ["small"])
    assert [settings["run_id"] for _, settings in started] == [None, "run 1"]
    assert started[0][1]["tags"] == {"small": ""}
    assert json.loads((tmp_path / trackers.IDS).read_text()) == {"mlflow": "run 2"}


def test_trackio_finds_a_run_by_its_name(tmp_path: Path, started: Started) -> None:
    for step in (0, 7):
        open_tracker("trackio", tmp_path, step, "scenes", [])
    assert [(settings["name"], settings["resume"]) for _, settings in started] == [
        (tmp_path.name, "never"),
        (tmp_path.name, "allow"),
    ]


def test_tensorboard_drops_what_a_resume_does_again(tmp_path: Path, started: Started) -> None:
    for step in (0, 7):
        open_tracker("tensorboard", tmp_path, step, "scenes", ["small"])
    assert [settings for _, settings in started] == [{}, {"purge_step": 8}]


def test_a_file_of_ids_that_cannot_be_read_is_no_end(tmp_path: Path, started: Started) -> None:
    (tmp_path / trackers.IDS).write_text("{")
    open_tracker("wandb", tmp_path, 7, "scenes", [])
    assert len(started[0][1]["id"]) == 32


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(RecipeError, match="trackers: got 'wandbb', did you mean"):
        check_trackers(["wandbb"])
