"""Signals that stop a run: it saves at a step boundary, says how it ended, and goes on later as if nothing had been."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mmssl.core.config import Duration
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import STOPPING, CheckpointError, Interrupted, Stopped, StopSignal
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.shards.patience import shared_outages
from mmssl.data.shards.remote import CacheConfig
from mmssl.training.checkpoints.write import CheckpointStore
from mmssl.training.runtime.signals import StopSignals
from tests.faults.forks import in_child
from tests.training.toys import Distance, Stream, assert_equal, make_run, tensors


class ActingStream(Stream):
    """Calls `action` just before the batch of step `at`."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.at, self.action = at, action

    def act(self, step: int) -> None:
        if step == self.at:
            self.action()


def send(*numbers: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


CODES = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_saves_and_the_run_goes_on_bit_by_bit(tmp_path: Path, number: int, code: int) -> None:
    handlers = [signal.getsignal(n) for n in STOPPING]
    whole = make_run(tmp_path / "whole")
    whole.train()
    stream = ActingStream(5, send(number))
    with pytest.raises(Interrupted, match=r"after step 6; saved") as caught:
        make_run(tmp_path / "cut", stream=stream).train()
    assert caught.value.exit_code == code
    assert stream.closed
    assert (tmp_path / "cut" / "checkpoints" / "LATEST").read_text() == "step_00000006"
    assert [signal.getsignal(n) for n in STOPPING] == handlers
    assert not (tmp_path / "cut" / ".lock").exists()
    resumed = make_run(tmp_path / "cut")
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))


class Waiting(ActingStream):
    """Its batch of step `at` does not come: a signal comes instead, and ends the waiting."""

    def __init__(self, at: int) -> None:
        super().__init__(at, self.wait)
        shared_outages()  # as streams of remote shards make them

    def wait(self) -> None:
        send(signal.SIGUSR1)()
        assert shared_outages().stopping, "the handler ends all waiting"
        raise Stopped("http://host/7.tar, byte 0 to 512: told to stop while waiting for it")


def test_a_signal_while_a_batch_is_waited_for_saves_the_last_step(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    whole.train()
    with pytest.raises(Interrupted, match="after step 5; saved") as caught:
        make_run(tmp_path / "cut", stream=Waiting(5)).train()
    assert caught.value.exit_code == 138
    assert (tmp_path / "cut/checkpoints/LATEST").read_text() == "step_00000005"
    assert not shared_outages().stopping, "the next run waits again"
    resumed = make_run(tmp_path / "cut")
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))


def test_a_signal_before_the_first_batch_leaves_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"before the first batch came: http://host/7\.tar, byte 0") as caught:
        make_run(tmp_path, stream=Waiting(0)).train()
    assert caught.value.exit_code == 138
    assert not (tmp_path / "checkpoints").exists()


class WaitingDistance(Distance):
    """Its shards do not come: a signal comes instead, and ends the waiting."""

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        patience = CacheConfig(deadline=0).build().storage.patience
        send(signal.SIGTERM)()
        yield "distance", patience("http://host/7.tar", "its size", lambda: 1.0)


def test_a_signal_while_an_evaluator_waits_for_storage_saves_and_evaluates_after_the_resume(tmp_path: Path) -> None:
    evaluators: Mapping[str, tuple[Evaluator, Duration]] = {"far": (WaitingDistance(), Duration("4 steps"))}
    with pytest.raises(Interrupted, match="after step 4; saved") as caught:
        make_run(tmp_path, evaluators=evaluators).train()
    assert caught.value.exit_code == 143
    assert (tmp_path / "checkpoints/LATEST").read_text() == "step_00000004"
    assert "far" not in (tmp_path / "metrics.jsonl").read_text(), "a stop is no failure of the evaluator"
    with pytest.raises(Interrupted, match="after step 4; saved"):
        make_run(tmp_path, evaluators=evaluators).train()
    seen = Distance()
    make_run(tmp_path, evaluators={"far": (seen, Duration("4 steps"))}).train()
    assert len(seen.seen) == 3, "at the steps 4, 8 and 10"


def test_a_signal_at_the_last_step_leaves_the_evaluation_to_the_next_session(tmp_path: Path) -> None:
    evaluators = {"far": (Distance(), None)}
    with pytest.raises(Interrupted, match="after step 10; saved"):
        make_run(tmp_path, stream=ActingStream(9, send(signal.SIGTERM)), evaluators=evaluators).train()
    assert not evaluators["far"][0].seen
    assert "far/distance" in make_run(tmp_path, evaluators=evaluators).train()


def test_a_process_that_is_told_to_stop_exits_with_143(tmp_path: Path) -> None:
    """From outside, at a moment that the run does not choose."""
    ready, started = os.pipe()

    def life() -> None:
        stream = ActingStream(3, lambda: os.write(started, b"!"))
        try:
            make_run(tmp_path, total=100_000_000, stream=stream, log={"every": "1000 steps", "trackers": []}).train()
        except Interrupted as error:
            sys.exit(error.exit_code)

    pid = os.fork()
    if pid == 0:
        try:
            life()
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    run = make_run(tmp_path)
    run.save.store.restore(run.state)
    assert run.state.step >= 3


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background of a shell is started with it ignored
    with pytest.raises(StopSignal):
        make_run(tmp_path, stream=ActingStream(5, send(signal.SIGINT, signal.SIGINT))).train()
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step_00000004"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_a_save_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CheckpointStore._write

    def write(self: CheckpointStore, *args: object) -> None:
        send(signal.SIGTERM)()
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointStore, "_write", write)
    with pytest.raises(Interrupted, match="after step 5"):
        make_run(tmp_path).train()
    run = make_run(tmp_path)
    run.save.store.restore(run.state)
    assert run.state.step == 5


def test_being_stopped_without_being_saved_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: CheckpointStore, *args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "_write", fail)
    with pytest.raises(CheckpointError, match="step 2: the checkpoint could not be saved"):
        make_run(tmp_path, stream=ActingStream(1, send(signal.SIGTERM))).train()


def test_votes_and_what_they_mean() -> None:
    with StopSignals() as stop:
        assert stop.votes() == [False] * 4
        assert StopSignals.agreed([False] * 4) is None
        send(signal.SIGTERM)()
        assert stop.votes() == [False, True, False, False]
        assert StopSignals.agreed(stop.votes()) == signal.SIGTERM
        send(signal.SIGUSR2)()
        assert StopSignals.agreed(stop.votes()) == signal.SIGTERM
        assert StopSignals.agreed([True] * 4) == signal.SIGINT


def test_forked_workers_leave_the_decision_to_their_parent() -> None:
    with StopSignals():
        assert in_child(send(signal.SIGINT, signal.SIGINT)) == 0
        assert in_child(send(signal.SIGUSR1, signal.SIGUSR2)) == 0
        assert in_child(send(signal.SIGTERM)) == 143


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def look() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
