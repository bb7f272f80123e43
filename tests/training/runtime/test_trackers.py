"""What trackers are given: project, name, tags, and the run of before where a run is resumed. Nothing is sent anywhere."""

from __future__ import annotations

import inspect
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from mmssl.core.errors import RecipeError
from mmssl.reporting.tracked import log_picture
from mmssl.training.runtime import launch as launching
from mmssl.training.runtime import trackers
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.trackers import check_trackers, open_tracker

ROOT = Path(__file__).resolve().parents[3]
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


def test_a_tracker_that_cannot_be_opened_stops_a_new_run_and_no_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str, *arguments: object) -> None:
        raise ConnectionError(f"nobody answers for {name}")

    monkeypatch.setattr(launching, "check_trackers", lambda names: None)
    monkeypatch.setattr(launching, "open_tracker", refused)
    launch = Launch(device="cpu", trackers=["wandb"])
    with pytest.raises(
        RecipeError, match=r"log\.trackers: the tracker 'wandb' cannot be opened: ConnectionError: nobody"
    ):
        launch.start_trackers(tmp_path, 0)
    launch.start_trackers(tmp_path, 5)
    assert "nobody answers for wandb; the run goes on without it" in capsys.readouterr().err
    launch.track({"loss": 1.0}, 6)
    launch.stop_trackers()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "00_Loss.png"
    Image.new("RGB", (6, 4), (200, 0, 0)).save(file)
    return file


def test_pictures_go_where_there_is_a_place_for_them(picture: Path) -> None:
    kept: list[Any] = []
    log_picture(SimpleNamespace(name="mlflow", log_artifact=lambda *what: kept.append(what)), picture, 7)
    assert kept == [(str(picture), "figures")]
    other = SimpleNamespace(name="wandb", log_images=lambda values, step: kept.append((values, step)))
    log_picture(other, picture, 7)
    values, step = kept[1]
    assert step == 7
    assert values["figures/00_Loss"].shape == (1, 4, 6, 3)
    log_picture(SimpleNamespace(name="dvclive"), picture, 7)


def test_tensorboard_keeps_pictures_of_a_finished_run_beside_its_numbers(picture: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    launch = Launch(device="cpu", trackers=["tensorboard"])
    launch.start_trackers(tmp_path, 0)
    launch.track({"loss": 1.0}, 7)
    launch.stop_trackers()
    launch.reopen_trackers(tmp_path, 7, partial(log_picture, file=picture, step=7))
    launch.close()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    read = accumulator.EventAccumulator(str(folder)).Reload()
    assert [one.step for one in read.Scalars("loss")] == [7]
    (shown,) = read.Images("figures/00_Loss")
    assert (shown.step, shown.width, shown.height) == (7, 6, 4)


REAL = ("wandb", "mlflow", "trackio")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_trackers_without_a_network(name: str, tmp_path: Path) -> None:
    """Six steps in two sessions: one run there, with project and tags. Packages: `pip install wandb mlflow-skinny trackio`."""
    pytest.importorskip(name, reason="this tracker is not installed")
    run = tmp_path / "first_run"
    run.mkdir()
    offline = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(tmp_path / "there"),
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'there'}", "MLFLOW_ALLOW_FILE_STORE": "true",
    }  # fmt: skip
    code = "import sys; from tests.training.runtime.test_trackers import session; session(*sys.argv[1:])"
    for step in (0, 3):
        command = [sys.executable, "-c", code, name, str(run), str(step)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    if name == "trackio":
        (path,) = (path for path in files if path.name == "scenes.db")
        with closing(sqlite3.connect(path)) as there:
            rows = there.execute("select run_name, step from metrics").fetchall()
            (config,) = there.execute("select config from configs").fetchone()
        assert rows == [("first_run", step) for step in (1, 2, 3, 4, 5, 6, 6)]  # the last one is the picture's
        assert json.loads(config)["tags"] == ["small", "first"]
        return
    (number,) = json.loads((run / trackers.IDS).read_text()).values()
    if name == "wandb":
        logs = [path for path in files if path.name == f"run-{number}.wandb"]
        assert len(logs) == 2
        assert all(word in path.read_bytes() for path in logs for word in (b"scenes", b"small", b"train/loss"))
    else:
        (path,) = (path for path in files if path.name == "loss" and number in path.parts)
        assert [line.split()[2] for line in path.read_text().splitlines()] == list("123456")
        assert {path.name for path in files if path.parent.name == "tags" and number in path.parts} >= {
            "small",
            "first",
        }
        assert any("name: scenes" in path.read_text() for path in files if path.name == "meta.yaml")


def session(name: str, folder: str, step: str) -> None:
    """Three steps of a run in a tracker."""
    PartialState(cpu=True)
    tracker = open_tracker(name, Path(folder), int(step), "scenes", ["small", "first"])
    for number in range(int(step) + 1, int(step) + 4):
        tracker.log({"train/loss": 1 / number}, step=number)
    if int(step):
        file = Path(folder) / "figure.png"
        Image.new("RGB", (6, 4)).save(file)
        log_picture(tracker, file, int(step) + 3)
    tracker.finish()
