"""The training loop: next batch, learning rate, optimizer step, then logging, saving and evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import MmsslError
from mmssl.training.beats import EvaluateBeat, SaveBeat
from mmssl.training.between import GivenSteps, act_after_step, save_and_stop
from mmssl.training.log import LogBeat
from mmssl.training.refresh import Refresh
from mmssl.training.runtime.console import ProgressBar, show_counts
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.runtime.signals import StopSignals
from mmssl.training.steps.optim import UpdateSchedule
from mmssl.training.steps.plain import GradientStep
from mmssl.training.steps.report import StepReport
from mmssl.training.steps.state import TrainState


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
    with StopSignals(lambda number: save_and_stop(state, save, number)) as stop, ProgressBar(state.total_steps) as bar:
        given = GivenSteps(state, save, bad_batches, max_bad_steps)
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
                act_after_step(state, report, answers, log, save, evaluations)
            del report  # its metrics are made of latents, which are not to be held through the next step
    if state.faults:
        show_counts("skipped samples", state.faults, state.fault_examples)


def _step(step: GradientStep, state: TrainState, batch: Batch, votes: Sequence[bool], missing: bool) -> StepReport:
    try:
        return step(state, batch, votes, discard=missing)
    except torch.OutOfMemoryError as error:
        # Never a smaller batch in silence: with negatives from the batch that would be another loss.
        raise MmsslError(
            f"step {state.step}: the device is out of memory with {len(batch)} samples on each process: use step kind "
            f"'cached' or more micro_batches, precision bf16, gradient checkpointing in the encoders, or lower batch_size ({error})"
        ) from error
