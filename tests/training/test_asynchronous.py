"""On a device that works through a queue, a step is given to it before the flags of the last one are read: the run is the same."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.config import Duration
from mmssl.core.errors import Interrupted, NumericError
from mmssl.training.checkpoints.manifest import FolderWriter
from mmssl.training.checkpoints.write import CheckpointStore, Snapshot
from mmssl.training.run import Run
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.plain import GradientStep
from mmssl.training.steps.report import Flags
from tests.faults.test_signals import ActingStream, Waiting, send
from tests.training.toys import Distance, Stream, assert_equal, make_run, tensors

QUIET = {"log": {"every": "5 steps", "trackers": []}}
TIMES = ("samples_per_second", "data_wait")


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The CPU, taken for a device with a queue."""
    monkeypatch.setattr(Launch, "asynchronous", True)
    return monkeypatch


def lines(run: Run) -> list[dict[str, Any]]:
    return [{key: x for key, x in line.items() if key not in TIMES} for line in run.log.metrics.read()]


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lars"])
def test_a_run_with_bad_steps_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Also where the first step is bad, and one before the last."""
    runs = []
    for late in (False, True):
        monkeypatch.setattr(Launch, "asynchronous", late)
        stream = Stream(poison=(0, 2, 3, 8))
        optimizer = {"kind": kind, "lr": 0.01}
        evaluators = {"far": (Distance(), Duration("3 steps"))}
        folder = tmp_path / str(late)
        runs.append(make_run(folder, stream=stream, optimizer=optimizer, evaluators=evaluators, **QUIET))
        runs[-1].train()
    now, late_run = runs
    assert_equal(tensors(late_run), tensors(now))
    assert late_run.state.numbers() == now.state.numbers()
    assert (late_run.state.skipped_steps, late_run.state.ema.updates if late_run.state.ema else None) == (4, 6)
    assert lines(late_run) == lines(now)
    bad = [(folder / "bad_batches.jsonl").read_text() for folder in (tmp_path / "True", tmp_path / "False")]
    assert bad[0] == bad[1]
    assert bad[0].count("\n") == 4


def test_the_next_batch_and_step_come_before_the_flags_are_read(tmp_path: Path, queued: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    call, read = GradientStep.__call__, Flags.read

    def step(self: GradientStep, *args: Any, **options: Any) -> Any:
        events.append("step")
        return call(self, *args, **options)

    def flags(self: Flags) -> tuple[bool, ...]:
        if not hasattr(self, "seen"):
            events.append("flags")
            self.seen = True  # type: ignore[attr-defined]
        return read(self)

    class Noted(Stream):
        def act(self, step: int) -> None:
            events.append("batch")

    queued.setattr(GradientStep, "__call__", step)
    queued.setattr(Flags, "read", flags)
    save = {"every": None, "minutes": None}
    make_run(tmp_path, total=4, stream=Noted(), save=save, **QUIET).train()
    given = ["batch", "step"]
    assert events == [*given, *given, "flags", *given, "flags", *given, "flags", "flags"]


def test_too_many_bad_steps_end_the_run_with_the_same_words(tmp_path: Path, queued: pytest.MonkeyPatch) -> None:
    with pytest.raises(NumericError, match=r"not finite in 3 steps in a row, up to step 9; "):
        make_run(tmp_path, stream=Stream(poison=(1, 6, 7, 8, 9)), max_bad_steps=3, **QUIET).train()
    assert (tmp_path / "bad_batches.jsonl").read_text().count("\n") == 4
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step_00000008"


@pytest.mark.parametrize(("stream", "step"), [(ActingStream(5, send(signal.SIGTERM)), 7), (Waiting(6), 6)])
def test_a_signal_saves_and_the_run_goes_on_bit_by_bit(
    tmp_path: Path, queued: pytest.MonkeyPatch, stream: Stream, step: int
) -> None:
    """A step later than it came; where it ended the waiting for a batch, the step before."""
    whole = make_run(tmp_path / "whole", **QUIET)
    whole.train()
    with pytest.raises(Interrupted, match=f"after step {step}; saved"):
        make_run(tmp_path / "cut", stream=stream, **QUIET).train()
    assert (tmp_path / "cut/checkpoints/LATEST").read_text() == f"step_0000000{step}"
    resumed = make_run(tmp_path / "cut", **QUIET)
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))
    assert resumed.state.numbers() == whole.state.numbers()


class Slow:
    """A disk on which the checkpoint of step 4 is written when step 7 begins, while which the run goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.waiting: list[int] = []
        write, slow = CheckpointStore._write, self

        def late(store: CheckpointStore, snapshot: Snapshot, temporary: Path) -> None:
            step = snapshot.numbers["step"]
            if step == 4:
                slow.waiting.append(step)
                assert slow.released.wait(60)
            write(store, snapshot, temporary)

        patch.setattr(CheckpointStore, "_write", late)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run's checkpoints, by name."""
    found = (path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_checkpoint_is_that_of_its_step_though_it_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one at a time: the next one, of step 8, waits for it."""
    make_run(tmp_path / "now").train()
    monkeypatch.setattr(Launch, "asynchronous", True)
    disk = Slow(monkeypatch)
    stream = ActingStream(7, disk.released.set)
    make_run(tmp_path / "later", stream=stream).train()
    assert disk.waiting == [4]
    assert contents(tmp_path / "later") == contents(tmp_path / "now")


def test_what_a_kill_while_a_checkpoint_is_written_would_leave_is_resumed(
    tmp_path: Path, queued: pytest.MonkeyPatch
) -> None:
    """The run folder as it is before step 6, when all files of step 4 are there but for the manifest."""
    often: dict[str, Any] = {**QUIET, "save": {"every": "2 steps", "minutes": None}}
    whole = make_run(tmp_path / "whole", **often)
    whole.train()
    released, finish = threading.Event(), FolderWriter.finish

    def late(writer: FolderWriter) -> None:
        if writer.folder.name.startswith("step_00000004"):
            assert released.wait(60)
        finish(writer)

    def kill() -> None:
        shutil.copytree(tmp_path / "running", tmp_path / "killed")
        (tmp_path / "killed/.lock").unlink()
        released.set()

    queued.setattr(FolderWriter, "finish", late)
    make_run(tmp_path / "running", stream=ActingStream(5, kill), **often).train()
    names = [path.name for path in (tmp_path / "killed/checkpoints").glob("step_*")]
    assert "step_00000002" in names
    assert not [name for name in names if name.startswith("step_00000004") and ".tmp-" not in name]
    resumed = make_run(tmp_path / "killed", **often)
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))


def test_a_checkpoint_that_cannot_be_written_is_told_when_the_next_one_is_due(
    tmp_path: Path, queued: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = CheckpointStore._write

    def full(store: CheckpointStore, snapshot: Snapshot, temporary: Path) -> None:
        if snapshot.numbers["step"] == 4:
            raise OSError(28, "No space left on device")
        write(store, snapshot, temporary)

    queued.setattr(CheckpointStore, "_write", full)
    run = make_run(tmp_path)
    run.train()
    assert "step 4: the checkpoint could not be saved: no space is left on the disk" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_00000008", "step_00000010"]
