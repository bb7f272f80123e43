"""Two processes train as one does on the same global batches, and take every decision together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmssl.core import distributed
from mmssl.core.config import Duration
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import CheckpointError, Interrupted, NumericError, RecipeError, Stopped
from mmssl.core.evaluator import Score
from mmssl.training.checkpoints.manifest import _HashingFile
from mmssl.training.checkpoints.read import read_numbers, resolve
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.runtime.launch import Launch
from tests.distributed.processes import Processes
from tests.training.toys import Agree, Distance, Drawing, Match, Stream, assert_equal, make_learner, make_run, tensors

OBJECTIVES = {"agree": Agree, "match": Match}


def trained(folder: str, objective: str, total: int = 6, **changes: Any) -> dict[str, Any]:
    """Train without dropout and batch normalisation, whose random numbers and statistics are each process' own."""
    run = make_run(
        Path(folder),
        total,
        learner=make_learner(OBJECTIVES[objective], noise=False, seed=distributed.rank()),
        evaluators={"far": (Distance(), Duration("3 steps"))},
        **changes,
    )
    run.train()
    wrapped = isinstance(run.step.wrapped, DistributedDataParallel)
    counts = {"samples": run.state.samples, "faults": run.state.faults, "notes": run.state.notes}
    return {"tensors": tensors(run), "wrapped": wrapped, **counts}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam divides small gradients by their own size, so that the last bits of a sum become visible.
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_train_as_one(two_processes: Processes, tmp_path: Path, objective: str) -> None:
    one = trained(str(tmp_path / "one"), objective)
    first, second = two_processes.run(trained, [(str(tmp_path / "two"), objective)] * 2)
    assert (one["wrapped"], first["wrapped"], second["wrapped"]) == (False, True, True)
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), f"{name} differs between processes"
    assert_close(first["tensors"], one["tensors"])
    assert first["samples"] == second["samples"] == one["samples"] == 48
    assert first["faults"] == second["faults"] == one["faults"] == {"undecodable": 2}
    assert first["notes"] == second["notes"] == one["notes"] == {"turn: no_handle": 6}
    alone, together = (JsonLines(tmp_path / name / "metrics.jsonl").read() for name in ("one", "two"))
    assert [r["step"] for r in alone] == [r["step"] for r in together]
    for ours, theirs in zip(alone, together, strict=True):
        for key in ours.keys() - {"samples_per_second", "data_wait"}:
            expected = theirs[key] if theirs[key] is None else pytest.approx(theirs[key], rel=1e-3, abs=1e-5)
            assert ours[key] == expected, key


def drawn(folder: str, kind: str) -> list[tuple[float, ...]]:
    step = {"kind": kind, **({} if kind == "plain" else {"micro_batches": 2})}
    run = make_run(Path(folder), 2, learner=make_learner(Drawing, noise=False), step=step)
    run.train()
    drawn: list[tuple[float, ...]] = run.state.learner.objective.drawn
    return drawn


@pytest.mark.parametrize(("kind", "calls", "different"), [("plain", 1, 1), ("accumulated", 2, 2), ("cached", 4, 2)])
def test_processes_draw_random_numbers_of_their_own(
    two_processes: Processes, tmp_path: Path, kind: str, calls: int, different: int
) -> None:
    """Dropout differs between processes, steps and micro-batches; a micro-batch that is encoded twice draws the same twice."""
    first, second = two_processes.run(drawn, [(str(tmp_path), kind)] * 2)
    assert len(first) == len(second) == 2 * calls
    assert len({*first, *second}) == 2 * 2 * different


def trained_in_parts(folder: str) -> dict[str, Any]:
    return trained(folder, "agree", step={"kind": "accumulated", "micro_batches": 2})


def test_parts_of_a_batch_on_two_processes(two_processes: Processes, tmp_path: Path) -> None:
    one = trained(str(tmp_path / "one"), "agree")
    first, _ = two_processes.run(trained_in_parts, [(str(tmp_path / "two"),)] * 2)
    assert_close(first["tensors"], one["tensors"])


def trained_at_a_constant_rate(folder: str, total: int) -> dict[str, Any]:
    return trained(folder, "match", total, schedule={"kind": "constant"})


def test_the_number_of_processes_may_change_on_resume(two_processes: Processes, tmp_path: Path) -> None:
    one = trained_at_a_constant_rate(str(tmp_path / "one"), 6)
    folder = str(tmp_path / "more")
    trained_at_a_constant_rate(folder, 2)
    two_processes.run(trained_at_a_constant_rate, [(folder, 4)] * 2)
    assert read_numbers(resolve(tmp_path / "more", "last"))["processes"] == 2
    again = trained_at_a_constant_rate(folder, 6)
    assert again["samples"] == one["samples"]
    assert_close(again["tensors"], one["tensors"])


def poisoned(folder: str) -> dict[str, Any]:
    """Only the last row, which is the second process', holds NaN; in LOCAL losses only its loss is NaN."""
    run = make_run(Path(folder), stream=Stream(poison=(1, 3, 4)), max_bad_steps=2)
    message = ""
    try:
        run.train()
    except NumericError as error:
        message = str(error)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors(run).values())
    weight = run.state.learner.objective.head.weight.detach()
    return {"message": message, "finite": finite, "step": run.state.step, "weight": weight}


def test_one_bad_process_stops_both(two_processes: Processes, tmp_path: Path) -> None:
    first, second = two_processes.run(poisoned, [(str(tmp_path),)] * 2)
    assert "2 steps in a row, up to step 5" in first["message"]
    assert first["message"] == second["message"]
    assert first["finite"]
    assert second["finite"]
    assert first["step"] == second["step"] == 5
    assert torch.equal(first["weight"], second["weight"])
    keys = [record["keys"] for record in JsonLines(tmp_path / "bad_batches.jsonl").read()]
    assert keys == [[f"{step}-{i}" for i in range(8)] for step in (1, 3, 4)]


class SignalledStream(Stream):
    """The second process is told to stop before step 3."""

    def act(self, step: int) -> None:
        if step == 3 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def signalled(folder: str) -> dict[str, Any]:
    try:
        make_run(Path(folder), stream=SignalledStream()).train()
    except Interrupted as error:
        return {"code": error.exit_code, "message": str(error)}
    return {}


def test_a_signal_to_one_process_stops_both_at_one_step(two_processes: Processes, tmp_path: Path) -> None:
    first, second = two_processes.run(signalled, [(str(tmp_path),)] * 2)
    assert (
        first
        == second
        == {"code": 143, "message": f"stopped by SIGTERM after step 4; saved in {tmp_path / 'checkpoints'}"}
    )
    assert resolve(tmp_path, "last").name == "step_00000004"


def refused(folder: str) -> str:
    try:
        make_run(Path(folder)).train("never")
    except RecipeError as error:
        return str(error)
    return ""


def on_a_full_disk(folder: str) -> str:
    original = _HashingFile.write

    def write(self: _HashingFile, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    _HashingFile.write = write  # type: ignore[method-assign]
    try:
        make_run(Path(folder), save={"every": "1 steps", "minutes": None}).train()
    except CheckpointError as error:
        return str(error)
    finally:
        _HashingFile.write = original  # type: ignore[method-assign]
    return ""


def test_what_the_main_process_cannot_do_all_are_told(two_processes: Processes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "elsewhere", "started": null}')
    first, second = two_processes.run(refused, [(str(tmp_path),)] * 2)
    assert first == second
    assert "in use by process 1 on elsewhere" in first
    first, second = two_processes.run(on_a_full_disk, [(str(tmp_path / "other"),)] * 2)
    assert first == second
    assert "step 3: the checkpoint could not be saved" in first


def buffers_after(folder: str, parallel: str) -> dict[str, Any]:
    """Running statistics that differ between processes: when the run is built, after a step, and in an evaluation."""
    learner = make_learner()
    norm = learner.encoders["a"].norm
    norm.running_mean.fill_(5 + distributed.rank())
    run = make_run(Path(folder), learner=learner, parallel=parallel)
    started = norm.running_mean.tolist()
    norm.momentum = 0.0
    norm.running_mean.fill_(1 + distributed.rank())
    run.step(run.state, next(iter(run.state.stream)))
    stepped = norm.running_mean.tolist()
    with run.launch.gathered(learner):
        return {"started": started, "stepped": stepped, "evaluated": norm.running_mean.tolist()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_running_statistics_are_each_process_own_and_the_main_process_is_evaluated(
    two_processes: Processes, tmp_path: Path, parallel: str
) -> None:
    first, second = two_processes.run(buffers_after, [(str(tmp_path), parallel)] * 2)
    assert set(first["started"]) == set(second["started"]) == {5.0}
    assert (set(first["stepped"]), set(second["stepped"])) == ({1.0}, {2.0})
    assert set(first["evaluated"]) == set(second["evaluated"]) == {1.0}


def stopped_without_a_batch(folder: str, late: bool) -> tuple[str, dict[str, Tensor], int]:
    """The second process is told to stop while it waits for the batch of step 5, which the first one has.

    With `late`, as on a device with a queue: the first process then begins step 6 before it knows.
    """
    before, Launch.asynchronous = Launch.asynchronous, late  # type: ignore[assignment,method-assign]

    class Waiting(Stream):
        def act(self, step: int) -> None:
            if step == 5 and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR2)
                raise Stopped("waiting")

    run = make_run(
        Path(folder), stream=Waiting(), learner=make_learner(Match), log={"every": "9 steps", "trackers": []}
    )
    try:
        run.train()
    except Interrupted as error:
        return str(error), tensors(run), run.state.numbers()["stream"]["step"]
    finally:
        Launch.asynchronous = before  # type: ignore[method-assign]
    return "", {}, 0


def gone_on(folder: str) -> dict[str, Tensor]:
    run = make_run(Path(folder), learner=make_learner(Match))
    run.train()
    return tensors(run)


@pytest.mark.parametrize("late", [False, True])
def test_a_process_that_gives_its_batch_up_stops_both_before_that_step(
    two_processes: Processes, tmp_path: Path, late: bool
) -> None:
    first, second = two_processes.run(stopped_without_a_batch, [(str(tmp_path / "cut"), late)] * 2)
    assert first[0] == second[0] == f"stopped by SIGUSR2 after step 5; saved in {tmp_path / 'cut/checkpoints'}"
    assert first[2] == 5, "the batch that the first process had is drawn again"
    assert resolve(tmp_path / "cut", "last").name == "step_00000005"
    whole, _ = two_processes.run(gone_on, [(str(tmp_path / "whole"),)] * 2)
    resumed, _ = two_processes.run(gone_on, [(str(tmp_path / "cut"),)] * 2)
    assert_equal(resumed, whole)


class WaitingDistance(Distance):
    """In the second process a signal ends the waiting for the shards; the first one has them."""

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped("waiting")
        distributed.gather_objects(None)
        yield from super().evaluate(model)


def stopped_in_an_evaluation(folder: str) -> tuple[str, int]:
    evaluators = {"far": (WaitingDistance(), Duration("4 steps"))}
    try:
        make_run(Path(folder), evaluators=evaluators).train()
    except Interrupted as error:
        return str(error), error.exit_code
    raise AssertionError("it was told to stop")


def test_a_signal_that_ends_one_process_waiting_in_an_evaluation_ends_all(
    two_processes: Processes, tmp_path: Path
) -> None:
    first, second = two_processes.run(stopped_in_an_evaluation, [(str(tmp_path),)] * 2)
    assert first == second == (f"stopped by SIGTERM after step 4; saved in {tmp_path}/checkpoints", 143)
    assert (tmp_path / "checkpoints/LATEST").read_text() == "step_00000004"
    assert "far/error" not in (tmp_path / "metrics.jsonl").read_text()
