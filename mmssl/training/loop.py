"""The training loop: next batch, learning rate, optimizer step, then logging, saving and evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from mmssl.training.steps.plain import GradientStep, StepReport
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
    with StopSignals(lambda number: _leave(state, save, number)) as stop, ProgressBar(state.total_steps) as bar:
        for evaluation in evaluations:
            evaluation.catch_up(state)
        save.mark_best(state)
        batches = iter(state.stream)
        while state.step < state.total_steps:
            refresh(state, save, stop)
            started = time.monotonic()
            batch, missing = stop.next_batch(batches, batch)
            fetched = time.monotonic()
            updates.apply(state.optimizer, state.step)
            votes = [*stop.votes(), *(beat.every.wish() for beat in (log, save, *evaluations))]
            report = _step(step, state, batch, votes, missing)
            number = stop.agreed(report.votes[: len(STOPPING)])
            if report.discarded:
                _leave(state, save, number)
            if report.finite and state.ema is not None:
                state.ema.update(state.learner)
            state.advance(batch, report.finite)
            if not report.finite:
                _note_bad(state, batch, report, bad_batches, max_bad_steps)
            log.timed(fetched - started, time.monotonic() - fetched)
            bar.show(state.step)
            last = state.step == state.total_steps
            wished = [last or wish for wish in report.votes[len(STOPPING) :]]
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


def _note_bad(state: TrainState, batch: Batch, report: StepReport, bad_batches: JsonLines, most: int) -> None:
    """Record a skipped batch, from all processes; end the run after too many in a row."""
    keys = [key for keys in gather_objects(list(batch.keys)) for key in keys]
    scalars = report.scalars()
    if is_main():
        bad_batches.append({"step": state.step, "keys": keys, **scalars})
    say(f"step {state.step}: loss {scalars['loss']:.4g}, gradient norm {scalars['grad_norm']:.4g}: not finite, skipped")
    if state.bad_in_a_row >= most:
        raise NumericError(
            f"loss or gradient was not finite in {state.bad_in_a_row} steps in a row, up to step {state.step}; the last checkpoint "
            f"is unchanged. Lower the learning rate, warm up longer, clip the gradient, or look at samples in {bad_batches.path}"
        )
