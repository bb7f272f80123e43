"""How much faster a run would be with a perfect data loader: the part of `mmssl bench data RECIPE` that trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import repeat

from mmssl.core.batch import Batch
from mmssl.training.log import INPUT_BOUND
from mmssl.training.run import Run
from mmssl.training.steps.report import StepReport


@dataclass(frozen=True)
class Headspace:
    """Speed of a run with its loader, and with one that always has the next batch ready.

    Attributes:
        steps_per_second: of the run as it is.
        perfect_steps_per_second: of steps on one batch that is on the device already.
        waiting: share of the time that the run as it is waits for data.
        total_steps: of the run.
        batch_size: samples of a step, on all processes.
    """

    steps_per_second: float
    perfect_steps_per_second: float
    waiting: float
    total_steps: int
    batch_size: int

    @property
    def hours(self) -> float:
        """Hours of the whole run as it is."""
        return self.total_steps / self.steps_per_second / 3600

    @property
    def gain_hours(self) -> float:
        """Hours that a perfect loader would save."""
        return max(0.0, self.hours - self.total_steps / self.perfect_steps_per_second / 3600)

    @property
    def input_bound(self) -> bool:
        """Whether the run waits for data for at least the share of the time that its log calls input-bound."""
        return self.waiting >= INPUT_BOUND

    def rows(self, slowest: str) -> list[tuple[str, str]]:
        """Lines for a table.

        Args:
            slowest: stage of the loader that takes most of its CPU time.
        """
        now, perfect = self.steps_per_second, self.perfect_steps_per_second
        saved, whole = (timedelta(seconds=round(3600 * hours)) for hours in (self.gain_hours, self.hours))
        verdict = (
            f"input-bound: {self.waiting:.0%} of the time is waiting for data; mend: more data.workers if cores are free, else "
            f"{slowest}, the slowest stage"
            if self.input_bound
            else f"not input-bound: {self.waiting:.0%} of the time is waiting for data (limit {INPUT_BOUND:.0%})"
        )
        return [
            ("run now", f"{now:,.3g} steps/s ({now * self.batch_size:,.0f} samples/s)"),
            ("perfect loader", f"{perfect:,.3g} steps/s, saves {saved} of {whole} in {self.total_steps:,} steps"),
            ("verdict", verdict),
        ]


def measure_headspace(
    run: Run, batch_size: int, ahead: int, seconds: float, progress: Callable[[float], None] = lambda share: None
) -> Headspace:
    """Train for a while on one batch, then on the batches of the loader; nothing is written.

    Args:
        run: built and not started; its weights move.
        batch_size: samples of a step, on all processes.
        ahead: batches that the loader holds ready, which are used up before its clock starts.
        seconds: duration of each half; a half has at least two steps.
        progress: called with the share that is done.
    """
    run.state.learner.train()
    batches = iter(run.state.stream)
    batch = next(batches)
    for _ in range(2):  # the first steps allocate memory, compile, and choose kernels
        _train_on(run, batch)
    perfect, _ = _rate(run, repeat(batch), seconds, lambda share: progress(share / 2))
    for _ in range(ahead):
        _train_on(run, next(batches))
    now, waiting = _rate(run, batches, seconds, lambda share: progress((1 + share) / 2))
    return Headspace(now, perfect, waiting, run.state.total_steps, batch_size)


def _rate(run: Run, batches: Iterator[Batch], seconds: float, progress: Callable[[float], None]) -> tuple[float, float]:
    """(steps per second, share of the time spent waiting for batches) of training for some seconds."""
    start, waited, steps = time.perf_counter(), 0.0, 0
    report: StepReport | None = None
    while steps < 2 or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        batch = next(batches)
        if report is None or report.flags.arrived:  # while the device works, nothing waits for data
            waited += time.perf_counter() - asked
        before, report = report, _train_on(run, batch)
        if before is not None:
            before.flags.read()
        steps += 1
        progress(min(1.0, (time.perf_counter() - start) / seconds))
    assert report is not None
    report.flags.read()
    elapsed = time.perf_counter() - start
    return steps / elapsed, waited / elapsed


def _train_on(run: Run, batch: Batch) -> StepReport:
    """Give the device one step of the training loop, without its log, checkpoints and evaluations."""
    state = run.state
    run.updates.apply(state.optimizer, state.step)
    report = run.step(state, batch)
    if state.ema is not None:
        state.ema.update(state.learner, report.skip)
    state.advance(batch)
    return report
