"""Refreshing an objective between two steps: the reading of all training samples for it, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.distributed import attempt
from mmssl.core.errors import Interrupted, MmsslError, Stopped
from mmssl.training.beats import Every, SaveBeat
from mmssl.training.runtime.console import say
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.signals import StopSignals
from mmssl.training.steps.compilation import eagerly
from mmssl.training.steps.prefetch import Unfinished, finish_views, trim_texts
from mmssl.training.steps.state import TrainState

MINUTES = 0.5
"""Between two lines on the progress of a reading."""


class Reading(Protocol):
    """This process' share of the training samples, each once, in order; can be iterated again."""

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        ...

    def __len__(self) -> int:
        """Number of batches of one pass."""
        ...

    def close(self) -> None:
        """Stop the workers; the next pass starts new ones."""
        ...


class Refresh:
    """Calls `Objective.refresh` before the steps at which it is due, in evaluation mode, float32 and with all weights gathered.

    A refresh belongs to the step that follows it: a checkpoint of that step is of before, and a resumed run refreshes first.

    Args:
        every: steps from one to the next; None: there is none.
        reading: the training samples; None where there is none.
        launch: gathers sharded weights.
        unfinished: views that are finished on the device.
    """

    def __init__(
        self, every: int | None, reading: Reading | None, launch: Launch, unfinished: Unfinished | None = None
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"got a refresh every {every} steps, wanted at least 1")
        self._every, self._reading, self._launch = every, reading, launch
        self._unfinished = unfinished or {}

    def falls_on(self, step: int) -> bool:
        """Whether a refresh is due before the 0-based step."""
        return self._every is not None and step % self._every == 0

    def __call__(self, state: TrainState, save: SaveBeat, stop: StopSignals) -> None:
        """Refresh if it is due before the next step of `state`. Every process must call.

        Raises:
            Interrupted: a signal came while samples were read; the steps so far are saved.
            MmsslError: samples cannot be read, or the objective failed.
        """
        if not self.falls_on(state.step):
            return
        assert self._reading is not None
        learner, started = state.learner, time.monotonic()
        batches = _Batches(self._reading, state, self._launch.device, stop, self._unfinished)
        learner.eval()
        try:
            with torch.no_grad(), eagerly(learner), self._launch.gathered(learner):
                made = attempt(lambda: [*learner.objective.refresh(batches, batches.ctx)])
        except Interrupted:
            if state.step > 0:
                save.must(state)
            raise
        finally:
            learner.train()
            self._reading.close()
        if isinstance(made, MmsslError):
            raise made
        state.forget_moments(made)
        say(f"{state.place} | refreshed the objective in {time.monotonic() - started:.1f} s")


@dataclass
class _Batches:
    """Batches of a reading on the device; says how far it is, and ends by `Interrupted` when a signal has come."""

    reading: Reading
    state: TrainState
    device: torch.device
    stop: StopSignals
    unfinished: Unfinished

    def __post_init__(self) -> None:
        self.ctx: StepContext = self.state.learner.context(self.state.step, self.state.total_steps)

    def __iter__(self) -> Iterator[Batch]:
        line = Every(minutes=MINUTES)
        encoders = dict(self.state.learner.encoders.items())
        try:
            for number, batch in enumerate(self.reading):
                if self.stop.number is not None:
                    raise Stopped("reading of all samples")
                if line.due(number, line.wish()):
                    say(
                        f"{self.state.place} | refresh: {number / len(self.reading):.0%} of the training samples are read"
                    )
                yield finish_views(trim_texts(batch, encoders).to(self.device), self.unfinished, encoders)
                self.ctx.forget()
        except Stopped:
            if self.stop.number is None:
                raise
            step = self.state.step
            when = (
                f"in the refresh after step {step}, which is saved" if step else "in the refresh before the first step"
            )
            raise Interrupted(when, self.stop.number) from None
