"""How much faster a run would be with a perfect loader."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.training import headspace
from mmssl.training.headspace import Headspace, measure_headspace
from mmssl.training.steps.report import Flags
from tests.training.toys import make_run


class Clock:
    """A clock that only the run below moves: 3 s for each batch of the loader, 1 s for each step."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_waiting_is_what_a_perfect_loader_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = make_run(tmp_path), Clock()
    batches: Iterator[Batch] = iter(run.state.stream)
    taken, trained = itertools.count(), list[int]()

    def slow() -> Iterator[Batch]:
        for batch in batches:
            next(taken)
            clock.now += 3.0
            yield batch

    def step(run: object, batch: Batch) -> SimpleNamespace:
        trained.append(id(batch))
        clock.now += 1.0
        return SimpleNamespace(flags=Flags(torch.zeros(2)))

    monkeypatch.setattr(headspace, "time", clock)
    monkeypatch.setattr(headspace, "_train_on", step)
    monkeypatch.setattr(type(run.state.stream), "__iter__", lambda self: slow())
    shares: list[float] = []
    found = measure_headspace(run, batch_size=8, ahead=4, seconds=8.0, progress=shares.append)
    assert (found.steps_per_second, found.perfect_steps_per_second, found.waiting) == (0.25, 1.0, 0.75)
    assert next(taken) == 1 + 4 + 2, "one for the repeated steps, four made ahead, two in the clock"
    assert len(set(trained[:10])) == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_step_trains_and_writes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = [parameter.clone() for parameter in run.state.learner.parameters()]
    found = measure_headspace(run, batch_size=8, ahead=0, seconds=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.state.learner.parameters(), strict=True))
    assert run.state.step == 2 + 2 + 2
    assert found.total_steps == run.state.total_steps
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("waiting", "words"), [(0.24, "not input-bound: 24%"), (0.25, "input-bound: 25%")])
def test_the_verdict_has_a_limit(waiting: float, words: str) -> None:
    found = Headspace(2.0, 2.5, waiting, total_steps=72_000, batch_size=100)
    assert (found.hours, found.gain_hours) == (10.0, 2.0)
    rows = dict(found.rows("decode"))
    assert rows["verdict"].startswith(words)
    assert ("decode" in rows["verdict"]) == found.input_bound
    assert rows["run now"] == "2 steps/s (200 samples/s)"
    assert rows["perfect loader"] == "2.5 steps/s, saves 2:00:00 of 10:00:00 in 72,000 steps"


def test_noise_is_no_gain() -> None:
    assert Headspace(2.0, 1.9, 0.0, total_steps=100, batch_size=8).gain_hours == 0.0
