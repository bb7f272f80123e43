"""Objectives that are refreshed: when, with which samples and in which state; the same bits after any stop; moments; processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.errors import DataError, Interrupted, MmsslError, Stopped
from mmssl.core.objective import Latents, LossOutput
from mmssl.training.checkpoints.read import resolve
from mmssl.training.refresh import Refresh
from mmssl.training.run import Run
from mmssl.training.runtime.signals import StopSignals
from tests.distributed.processes import Processes
from tests.training.toys import WIDTH, Agree, Stream, assert_equal, make_learner, make_run, tensors

EVERY, SAMPLES = 3, 11


class Refreshed(Agree):
    """Pulled towards the mean feature of all samples as of the last refresh, which also draws its head anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("target", torch.zeros(WIDTH))
        self.notes: list[tuple[int, list[int]]] = []
        self.returns = ["head.weight"]

    def refresh_every(self) -> int | None:
        return EVERY

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in [self, *ctx.encoders.values()])
        seen, rows = [], [torch.zeros(0, WIDTH)]
        for batch in batches:
            (features,) = ctx.features(batch, "a", ["view0"])
            assert features is ctx.features(batch, "a", ["view0"])[0], "each view is encoded once"
            seen += batch.index.tolist()
            rows.append(features.pooled)
        self.notes.append((ctx.step, seen))
        everyone = distributed.gather_uneven(torch.cat(rows))
        self.target.copy_(everyone.mean(0))
        self.head.weight.normal_(generator=ctx.generator("head"))
        return self.returns

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        out = super().criterion(latents, ctx)
        near = (latents["a"] - self.target).square().mean()
        return LossOutput({**out.terms, "target": near}, out.measure)


class Samples:
    """SAMPLES samples in batches of at most 4, this process' share of them; `act` is called before each batch."""

    def __init__(self) -> None:
        self.passes = self.closed = 0

    def act(self, start: int) -> None:
        """What a test wants to happen."""

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        rank, world = distributed.rank(), distributed.world_size()
        whole = make_whole()
        share = whole.rows(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
        for number, batch in enumerate(share.chunks(4)):
            self.act(number)
            yield batch

    def __len__(self) -> int:
        return 3

    def close(self) -> None:
        self.closed += 1


def make_whole() -> Batch:
    random = torch.Generator().manual_seed(5)
    views = {m: {"view0": torch.randn(SAMPLES, WIDTH, generator=random)} for m in ("a", "b")}
    return Batch(views, torch.arange(SAMPLES))


def started(folder: Path, total: int = 10, noise: bool = True, seed: int = 0, **changes: Any) -> Run:
    learner = changes.pop("learner", None) or make_learner(Refreshed, noise=noise, seed=seed)
    reading = changes.pop("reading", None) or Samples()
    return make_run(folder, total, learner=learner, reading=reading, **changes)


def notes(run: Run) -> list[int]:
    objective = run.state.learner.objective
    assert isinstance(objective, Refreshed)
    return [step for step, _ in objective.notes]


def test_it_is_refreshed_before_the_first_step_and_at_every_interval_but_not_after_the_last(tmp_path: Path) -> None:
    run = started(tmp_path, total=9)
    run.train()
    objective, reading = run.state.learner.objective, run.refresh._reading
    assert isinstance(objective, Refreshed)
    assert isinstance(reading, Samples)
    assert objective.notes == [(step, list(range(SAMPLES))) for step in (0, 3, 6)]
    assert reading.passes == reading.closed == 3
    assert objective.training
    again = started(tmp_path, total=9)
    again.train()
    assert notes(again) == [], "a finished run is not refreshed"
    longer = started(tmp_path, total=10)
    longer.train()
    assert notes(longer) == [9], "until it goes on"


def test_an_objective_without_refresh_reads_nothing(tmp_path: Path) -> None:
    reading = Samples()
    make_run(tmp_path, 4, reading=reading).train()
    assert reading.passes == reading.closed == 0


class PowerCutError(BaseException):
    """Between two steps."""


class CutStream(Stream):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def act(self, step: int) -> None:
        if step == self.at:
            raise PowerCutError


@pytest.mark.parametrize(
    ("every", "cut", "again"), [(3, 3, [3, 6, 9]), (3, 5, [3, 6, 9]), (2, 3, [3, 6, 9]), (4, 5, [6, 9])]
)
def test_resume_is_bit_exact(tmp_path: Path, every: int, cut: int, again: list[int]) -> None:
    """Checkpoints at a refresh, cut before and after it, and between two."""
    save = {"every": f"{every} steps", "minutes": None}
    whole = started(tmp_path / "whole", save=save)
    whole.train()
    with pytest.raises(PowerCutError):
        started(tmp_path / "cut", save=save, stream=CutStream(cut)).train()
    resumed = started(tmp_path / "cut", save=save, seed=9)
    resumed.train()
    assert notes(resumed) == again
    assert_equal(tensors(resumed), tensors(whole))
    assert not torch.equal(whole.state.learner.objective.target, torch.zeros(WIDTH))


class SignalledSamples(Samples):
    """A signal comes in the second batch of a pass: noted there, or ending a wait for storage."""

    def __init__(self, at: int, waiting: bool) -> None:
        super().__init__()
        self.at, self.waiting = at, waiting

    def act(self, number: int) -> None:
        if (self.passes, number) == (self.at, 1):
            os.kill(os.getpid(), signal.SIGTERM)
            if self.waiting:
                raise Stopped("for storage")


@pytest.mark.parametrize("waiting", [False, True])
def test_a_signal_ends_a_reading_and_the_steps_before_it_are_saved(tmp_path: Path, waiting: bool) -> None:
    whole = started(tmp_path / "whole")
    whole.train()
    stopped = started(tmp_path / "cut", reading=SignalledSamples(2, waiting))
    with pytest.raises(Interrupted, match="stopped by SIGTERM in the refresh after step 3, which is saved") as error:
        stopped.train()
    assert error.value.exit_code == 143
    assert notes(stopped) == [0]
    assert resolve(tmp_path / "cut", "last").name == "step_00000003"
    resumed = started(tmp_path / "cut", seed=9)
    resumed.train()
    assert notes(resumed) == [3, 6, 9]
    assert_equal(tensors(resumed), tensors(whole))


def test_a_signal_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="in the refresh before the first step"):
        started(tmp_path, reading=SignalledSamples(1, False)).train()
    assert not (tmp_path / "checkpoints").exists()


def test_moments_and_average_of_what_is_made_anew_start_again(tmp_path: Path) -> None:
    """One step after a refresh Adam is at its first step for the new weight; its average is near the new weight."""
    kept = started(tmp_path / "kept", 4, seed=0)
    kept.state.learner.objective.returns = []
    anew = started(tmp_path / "anew", 4, seed=0)
    for run in (kept, anew):
        run.train()
    for run, steps in ((kept, 4), (anew, 1)):
        objective, moments = run.state.learner.objective, run.state.optimizer.state
        assert moments[objective.head.weight]["step"].item() == steps
        assert moments[objective.head.bias]["step"].item() == 4
        assert run.state.ema is not None
        average = run.state.ema.module.objective.head.weight
        near = torch.allclose(average, objective.head.weight, atol=0.02)
        assert near == (run is anew)


def test_the_average_takes_buffers_over_at_once(tmp_path: Path) -> None:
    run = started(tmp_path, 4)
    run.refresh(run.state, run.save, StopSignals())
    assert run.state.ema is not None
    assert torch.equal(run.state.ema.module.objective.target, run.state.learner.objective.target)


def test_names_of_no_parameter_are_refused(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.state.learner.objective.returns = ["head.wait"]
    with pytest.raises(
        ValueError, match=r"Refreshed\.refresh\(\) returned \['head\.wait'\], wanted names of its parameters"
    ):
        run.train()


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="every 0 steps, wanted at least 1"):
        Refresh(0, None, None)  # type: ignore[arg-type]


def test_long_readings_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmssl.training.refresh.MINUTES", 0.0)
    started(tmp_path, 2).train()
    shown = capsys.readouterr().err
    assert "step 0/2 | refresh: 67% of the training samples are read" in shown
    assert "step 0/2 | refreshed the objective in 0." in shown


def trained(folder: str, parallel: str) -> dict[str, Any]:
    run = started(Path(folder), 7, noise=False, seed=distributed.rank(), parallel=parallel, ema=None)
    run.train()
    objective = run.state.learner.objective
    assert isinstance(objective, Refreshed)
    own = {
        name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in run.state.learner.state_dict().items()
    }
    return {"notes": objective.notes, "tensors": own}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_refresh_as_one(two_processes: Processes, tmp_path: Path, parallel: str) -> None:
    one = trained(str(tmp_path / "one"), "auto")
    first, second = two_processes.run(trained, [(str(tmp_path / "two"), parallel)] * 2)
    assert [
        (step, ours + theirs) for (step, ours), (_, theirs) in zip(first["notes"], second["notes"], strict=True)
    ] == one["notes"]
    assert {len(seen) for _, seen in first["notes"]} == {SAMPLES // 2}, "shares differ in size"
    for name, tensor in one["tensors"].items():
        assert torch.equal(first["tensors"][name], second["tensors"][name]), name
        torch.testing.assert_close(
            first["tensors"][name], tensor, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


class FailingSamples(Samples):
    """The second process cannot read its last batch."""

    def act(self, number: int) -> None:
        if distributed.rank() == 1 and number == 1:
            raise DataError("shard 7 is damaged")


class StoppedSamples(Samples):
    """The second process is told to stop in its first batch of the second pass."""

    def act(self, number: int) -> None:
        if distributed.rank() == 1 and (self.passes, number) == (2, 0):
            os.kill(os.getpid(), signal.SIGTERM)


def failed(folder: str, kind: str) -> str:
    readings = {"failing": FailingSamples, "stopped": StoppedSamples}
    try:
        started(Path(folder), noise=False, reading=readings[kind]()).train()
    except MmsslError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("failing", "DataError: shard 7 is damaged"),
        ("stopped", "Interrupted: stopped by SIGTERM in the refresh after step 3, which is saved"),
    ],
)
def test_what_ends_one_reading_ends_both(two_processes: Processes, tmp_path: Path, kind: str, message: str) -> None:
    assert two_processes.run(failed, [(str(tmp_path), kind)] * 2) == [message] * 2
    assert (tmp_path / "checkpoints/step_00000003").exists() == (kind == "stopped")
