"""Power cuts, full disks and damaged files: a checkpoint is whole or not there, and the one before it stays."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.errors import CheckpointError, NumericError
from mmssl.training.checkpoints import manifest
from mmssl.training.checkpoints.manifest import verify
from mmssl.training.checkpoints.read import load_weights, read_numbers, read_optimizer, read_recipe, resolve
from mmssl.training.run import Run
from tests.faults.forks import KILLED, in_child
from tests.training.toys import assert_equal, make_run, tensors

FILES = ("model.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "recipe.yaml", "manifest.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 4, 8 and 10."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder).train()
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def restored(folder: Path) -> Run:
    run = make_run(folder, total=20)
    run.save.store.restore(run.state)
    return run


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Watched:
    """An open file whose writes stop halfway when `act` says so."""

    def __init__(self, file: Any, act: Callable[[str], bool]) -> None:
        self._file, self._act = file, act

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        halfway = memoryview(data)[: len(data) // 2]
        if self._act("write"):
            self._file.write(halfway)
            raise full()
        return int(self._file.write(data))


def interrupt(patch: pytest.MonkeyPatch, act: Callable[[str], bool]) -> None:
    """Call `act` before everything that touches the disk; when it says so, the disk is full."""

    def watch(name: str) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if act(name):
                raise full()
            return original(*args, **kwargs)

        patch.setattr(os, name, wrapped)

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if act("open"):
            raise full()
        opened = original_open(file, mode, *args, **kwargs)
        return Watched(opened, act) if mode == "xb" else opened

    original_open = builtins.open
    for name in ("mkdir", "fsync", "replace", "unlink", "rmdir"):
        watch(name)
    patch.setattr(builtins, "open", watched_open)


def events_of_a_save(folder: Path) -> list[str]:
    """What a save does to the disk, in order."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        run = restored(folder)
        run.state.step = 12
        interrupt(patch, lambda name: seen.append(name) or False)
        run.save.store.save(run.state)
    return seen


def telling(events: list[str]) -> list[int]:
    """Of the many small writes of one archive, the first and last two; everything else: numbers of events, from 1."""
    return [
        number
        for number, name in enumerate(events, start=1)
        if name != "write" or {"write"} != set(events[max(0, number - 3) : number + 2])
    ]


def test_a_power_cut_at_any_write_leaves_the_checkpoint_before(folder: Path, tmp_path: Path) -> None:
    run = restored(folder)
    run.state.step = 12
    before = tensors(run)
    events = events_of_a_save(Path(shutil.copytree(folder, tmp_path / "dry")))
    assert events.count("replace") == 3  # the checkpoint, LATEST, the one that is pruned
    assert {"open", "mkdir", "write", "fsync", "unlink", "rmdir"} <= set(events)
    assert events[: events.index("replace")].count("fsync") == len(FILES) + 1  # and the folder
    survivors = set()
    for number in telling(events):
        place = Path(shutil.copytree(folder, tmp_path / str(number)))

        def save(place: Path = place, number: int = number) -> None:
            run.save.store.folder = place / "checkpoints"
            countdown = iter(range(1, len(events) + 1))
            patch = pytest.MonkeyPatch()
            interrupt(patch, lambda name: next(countdown) == number and os._exit(KILLED))
            run.save.store.save(run.state)

        assert in_child(save) == KILLED
        again = restored(place)
        assert again.state.step in (10, 12), number
        survivors.add(again.state.step)
        assert_equal(tensors(again), before)
        assert not list((place / "checkpoints").glob("*.tmp-*"))
        if number % 4 == 0:
            again.state.step = 12
            again.save.store.save(again.state)
            assert resolve(place, "last").name == "step_00000012"
            assert (place / "checkpoints" / "LATEST").read_text() == "step_00000012"
    assert survivors == {10, 12}


def test_a_full_disk_at_any_write_leaves_all_as_it_was(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    events = events_of_a_save(Path(shutil.copytree(folder, tmp_path / "dry")))
    renamed = events.index("replace") + 1
    run = restored(folder)
    run.state.step = 12
    for number in telling(events)[1:]:  # the first makes sure of a folder that is there
        if number > renamed:
            break
        with pytest.MonkeyPatch.context() as patch:
            countdown = iter(range(1, len(events) + 1))
            interrupt(patch, lambda name, n=number, c=countdown: next(c) == n)
            with pytest.raises(OSError, match="No space left"):
                run.save.store.save(run.state)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == names, number
        verify(folder / "checkpoints" / "step_00000010")
    run.save.store.save(run.state)
    assert resolve(folder, "last").name == "step_00000012"


def test_a_disk_that_forgets_what_it_was_told_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = restored(folder)
    run.state.step = 12
    replace = os.replace

    def lie(source: Path, target: Path) -> None:
        if Path(target).name == "step_00000012":
            weights = Path(source) / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        replace(source, target)

    monkeypatch.setattr(os, "replace", lie)
    with pytest.raises(OSError, match=r"the written checkpoint differs when read back: .*model\.safetensors"):
        run.save.store.save(run.state)
    assert (folder / "checkpoints" / "LATEST").read_text() == "step_00000010"
    assert restored(folder).state.step == 10


def fill_disk_at(run: Run, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    original = manifest._HashingFile.write

    def write(self: Any, data: bytes) -> int:
        if run.state.step in steps:
            raise full()
        return original(self, data)

    monkeypatch.setattr(manifest._HashingFile, "write", write)


def test_a_run_outlives_a_disk_that_is_full_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, save={"every": "2 steps", "minutes": None})
    fill_disk_at(run, {4, 6}, monkeypatch)
    run.train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == ["step_00000002", "step_00000008", "step_00000010"]
    message = capsys.readouterr().err
    assert message.count("could not be saved: no space is left on the disk") == 2


@pytest.mark.parametrize(("full", "step", "left"), [({4, 6, 8}, 8, 2), ({10}, 10, 8)])
def test_three_failed_saves_in_a_row_or_the_last_one_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: set[int], step: int, left: int
) -> None:
    run = make_run(tmp_path, save={"every": "2 steps", "minutes": None})
    fill_disk_at(run, full, monkeypatch)
    with pytest.raises(CheckpointError, match=f"step {step}: the checkpoint could not be saved"):
        run.train()
    assert restored(tmp_path).state.step == left


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damage_is_found_named_and_survived(
    folder: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = folder / "checkpoints" / "step_00000010"
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b""}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=name):
        resolve(newest)
    with pytest.raises(CheckpointError, match=name):
        load_weights(newest)
    fresh = make_run(folder, total=20)
    with pytest.raises(CheckpointError, match=name):
        fresh.save.store.restore(fresh.state, str(newest))
    capsys.readouterr()
    run = restored(folder)
    assert run.state.step == 8
    said = capsys.readouterr().err
    assert "skipping checkpoint step_00000010" in said
    assert name in said
    assert "resumed from" in said
    run.train()
    assert resolve(folder, "last").name == "step_00000020"
    assert (folder / "checkpoints" / "step_00000010.aside-0").is_dir()


def test_no_valid_checkpoint_is_an_error_and_not_a_new_start(folder: Path) -> None:
    for path in (folder / "checkpoints").glob("step_*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"(?s)no valid checkpoint:.*step_00000010.*step_00000008.*00004"):
        restored(folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "cannot be read"),
        ("[]", "schema"),
        ('{"schema": 2, "files": {}}', "got schema 2, wanted 1"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "files": {"../../x": {"size": 1, "sha256": ""}}}', "damaged"),
        ('{"schema": 1, "files": {"x": {"size": "1"}}}', "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(folder: Path, content: str, complaint: str) -> None:
    newest = folder / "checkpoints" / "step_00000010"
    (newest / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        verify(newest)


def test_a_checkpoint_of_another_version_says_so(folder: Path) -> None:
    newest = folder / "checkpoints" / "step_00000010"
    numbers = read_numbers(newest)
    del numbers["samples"]
    content = json.dumps(numbers).encode()
    (newest / "state.json").write_bytes(content)
    entry = json.loads((newest / "manifest.json").read_text())
    entry["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (newest / "manifest.json").write_text(json.dumps(entry))
    with pytest.raises(CheckpointError, match=r"state\.json: lacks 'samples'"):
        restored(folder)


def test_no_code_runs_from_an_optimizer_file(folder: Path) -> None:
    newest = folder / "checkpoints" / "step_00000010"
    torch.save({"state": Run}, newest / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: cannot be read"):
        read_optimizer(newest)


def test_weights_that_are_not_finite_are_never_saved(folder: Path) -> None:
    run = restored(folder)
    run.state.step = 12
    with torch.no_grad():
        run.state.learner.encoders["a"].first.weight[0, 0] = float("inf")
    with pytest.raises(NumericError, match=r"encoders\.a\.first\.weight"):
        run.save.store.save(run.state)
    assert resolve(folder, "last").name == "step_00000010"


def test_what_a_checkpoint_means(folder: Path, tmp_path: Path) -> None:
    newest = folder / "checkpoints" / "step_00000010"
    assert resolve(folder) == resolve(folder / "checkpoints") == resolve(newest) == newest
    assert read_recipe(newest) == "recipe: toy\n"
    run = restored(folder)
    assert run.state.ema is not None
    assert_equal(load_weights(newest), run.state.ema.module.state_dict())
    assert_equal(load_weights(newest, use_ema=False), run.state.learner.state_dict())
    assert load_weights(newest)["objective.log_scale"].shape == ()
    assert not torch.equal(load_weights(newest)["objective.head.weight"], run.state.learner.objective.head.weight)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            resolve(path)
    with pytest.raises(CheckpointError, match="no manifest"):
        resolve(tmp_path / "step_00000001")
