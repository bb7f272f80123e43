"""The training loop: next batch, learning rate, optimizer step, then logging, saving and evaluation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import NoReturn

import torch

from mmssl.core.batch import Batch
from mmssl.core.distributed import gather_objects, is_main
from mmssl.core.errors import STOPPING, Interrupted, MmsslError, NumericError
from mmssl.training.beats import EvaluateBeat, SaveBeat
from mmssl.training.log import LogBeat
from mmssl.training.refresh import Refresh
from mmssl.training.runtime.console import ProgressBar, say, show_counts
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.runtime.signals import StopSignals
from mmssl.training.steps.optim import UpdateSchedule
from mmssl.training.steps.plain import GradientStep
from mmssl.training.steps.report import StepReport
from mmssl.training.steps.state import Place, TrainState


def train(
    state: TrainState,
    step: GradientStep,
    updates: UpdateSchedule,
    refresh: Refresh,
    log: LogBeat,
    save: SaveBeat,
    evaluations: Sequence[EvaluateBeat],
    bad_batches: JsonLines,
    max_bad_steps: int = 10,
) -> None:
    """Train from the current step of `state` to its last, save and evaluate.

    On a device that works through a queue, each step is given to it before it is known whether the last one was finite, so that it
    never waits for the host. Signals and minutes then count one step later. Nothing is logged, saved or evaluated before that.

    Args:
        state: moves; its stream gives batches on the device.
        step, updates: computes and applies gradients; learning rate and weight decay at each step.
        refresh, log, save, evaluations: periodic actions, the first before a step and the others after it, in this order: a step is
            saved before its evaluation, which may take long; a resumed run evaluates it if that is still missing.
        bad_batches, max_bad_steps: file for the keys of batches with a non-finite loss or gradient; how many in a row end the run.

    Raises:
        Interrupted: one of `STOPPING` signals came; the run is saved.
        NumericError: too many steps in a row were not finite; the last checkpoint is unchanged.
        CheckpointError: saving failed three times in a row, or at the end.
        DataError: the stream ended or cannot be read.
    """
    state.learner.train()
    log.start(state)
    batch: Batch | None = None
    missing = False
    beats = (log, save, *evaluations)
    with StopSignals(lambda number: _leave(state, save, number)) as stop, ProgressBar(state.total_steps) as bar:
        given = _Given(state, save, bad_batches, max_bad_steps)
        for evaluation in evaluations:
            evaluation.catch_up(state)
        save.mark_best(state)
        batches = iter(state.stream)
        while state.step < state.total_steps:
            refresh(state, save, stop)
            started = time.monotonic()
            if not missing:  # a stream that gave up ends: the process joins steps until all know
                batch, missing = stop.next_batch(batches, batch)
            assert batch is not None
            fetched = time.monotonic() if given.are_done() else started  # no wait for data while the device has work
            updates.apply(state.optimizer, state.step)
            votes = [*stop.votes(), *(beat.every.wish() for beat in beats)]
            place = state.place_in_run()
            report = _step(step, state, batch, votes, missing)
            if state.ema is not None:
                state.ema.update(state.learner, report.skip)
            state.advance(batch)
            last = state.step == state.total_steps
            due = last or refresh.falls_on(state.step) or any(beat.every.falls_on(state.step) for beat in beats)
            given.add(batch, report, place)
            answers = given.judge(wait=due or not step.launch.asynchronous)
            log.timed(fetched - started, time.monotonic() - fetched)
            bar.show(state.step)
            if not given:
                number = stop.agreed(answers[: len(STOPPING)])
                wished = [last or wish for wish in answers[len(STOPPING) :]]
                log.after_step(state, report, wished[0])
                if number is not None:
                    _leave(state, save, number)
                save.after_step(state, report, wished[1], must=last)
                for evaluation, wish in zip(evaluations, wished[2:], strict=True):
                    evaluation.after_step(state, report, wish)
                save.mark_best(state)
            del report  # its metrics are made of latents, which are not to be held through the next step
    if state.faults:
        show_counts("skipped samples", state.faults, state.fault_examples)


class _Given:
    """Steps that the device was given, and of which the host has not read yet whether they were finite.

    Args:
        state, save: of the run.
        bad_batches, most: see `train`.
    """

    def __init__(self, state: TrainState, save: SaveBeat, bad_batches: JsonLines, most: int) -> None:
        self._state, self._save, self._bad_batches, self._most = state, save, bad_batches, most
        self._steps: deque[tuple[int, Batch, StepReport, Place]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def are_done(self) -> bool:
        """Whether the device has done them all, and has nothing left to do."""
        return all(report.flags.arrived for _, _, report, _ in self._steps)

    def add(self, batch: Batch, report: StepReport, place: Place) -> None:
        """Add a step, with the place in the run before it."""
        self._steps.append((self._state.step, batch, report, place))

    def judge(self, wait: bool) -> list[bool]:
        """Judge all steps but the newest, and that one too if told to wait or if a process wishes something; returns the votes.

        Raises:
            Interrupted: a process had no batch for a step. NumericError: too many in a row were not finite.
        """
        answers: list[bool] = []
        while len(self._steps) > (not wait and not any(answers)):
            step, batch, report, place = self._steps.popleft()
            if report.discarded:
                self._state.return_to(place)
                _leave(self._state, self._save, StopSignals.agreed(report.votes[: len(STOPPING)]))
            self._state.judge(report.finite)
            if not report.finite:
                self._note_bad(step, batch, report)
            answers = [any(both) for both in zip_longest(answers, report.votes, fillvalue=False)]
        return answers

    def _note_bad(self, step: int, batch: Batch, report: StepReport) -> None:
        """Record a skipped batch, from all processes; end the run after too many in a row."""
        keys = [key for keys in gather_objects(list(batch.keys)) for key in keys]
        scalars = report.scalars()
        if is_main():
            self._bad_batches.append({"step": step, "keys": keys, **scalars})
        say(f"step {step}: loss {scalars['loss']:.4g}, gradient norm {scalars['grad_norm']:.4g}: not finite, skipped")
        if self._state.bad_in_a_row >= self._most:
            raise NumericError(
                f"loss or gradient was not finite in {self._state.bad_in_a_row} steps in a row, up to step {step}; the last "
                "checkpoint is unchanged. Lower the learning rate, warm up longer, clip the gradient, or look at samples in "
                f"{self._bad_batches.path}"
            )


def _leave(state: TrainState, save: SaveBeat, number: int | None) -> NoReturn:
    """Save the last step and end the run by an `Interrupted`, on all processes."""
    assert number is not None, "nothing else ends the waiting for data"
    save.must(state)
    raise Interrupted(f"after step {state.step}; saved in {save.store.folder}", number)


def _step(step: GradientStep, state: TrainState, batch: Batch, votes: Sequence[bool], missing: bool) -> StepReport:
    try:
        return step(state, batch, votes, discard=missing)
    except torch.OutOfMemoryError as error:
        # Never a smaller batch in silence: with negatives from the batch that would be another loss.
        raise MmsslError(
            f"step {state.step}: the device is out of memory with {len(batch)} samples on each process: use step kind "
            f"'cached' or more micro_batches, precision bf16, gradient checkpointing in the encoders, or lower batch_size ({error})"
        ) from error
