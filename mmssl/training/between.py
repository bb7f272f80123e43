"""Between two steps: whether they were finite, and what is due: log, checkpoint, evaluation, the end of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import NoReturn

from mmssl.core.batch import Batch
from mmssl.core.distributed import gather_objects, is_main
from mmssl.core.errors import STOPPING, Interrupted, NumericError
from mmssl.training.beats import EvaluateBeat, SaveBeat
from mmssl.training.log import LogBeat
from mmssl.training.runtime.console import say
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.runtime.signals import StopSignals
from mmssl.training.steps.report import StepReport
from mmssl.training.steps.state import PlaceInRun, TrainState


class GivenSteps:
    """Steps that the device was given, and of which the host has not read yet whether they were finite.

    Args:
        state, save: of the run.
        bad_batches, most: file for the keys of batches that were not finite; how many in a row end the run.
    """

    def __init__(self, state: TrainState, save: SaveBeat, bad_batches: JsonLines, most: int) -> None:
        self._state, self._save, self._bad_batches, self._most = state, save, bad_batches, most
        self._steps: deque[tuple[int, Batch, StepReport, PlaceInRun]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def are_done(self) -> bool:
        """Whether the device has done them all, and has nothing left to do."""
        return all(report.flags.arrived for _, _, report, _ in self._steps)

    def add(self, batch: Batch, report: StepReport, place: PlaceInRun) -> None:
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
                save_and_stop(self._state, self._save, StopSignals.agreed(report.votes[: len(STOPPING)]))
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


def act_after_step(
    state: TrainState,
    report: StepReport,
    answers: Sequence[bool],
    log: LogBeat,
    save: SaveBeat,
    evaluations: Sequence[EvaluateBeat],
) -> None:
    """Do what is due after a step, or voted for; leave if a signal has come."""
    last = state.step == state.total_steps
    number = StopSignals.agreed(answers[: len(STOPPING)])
    wished = [last or wish for wish in answers[len(STOPPING) :]]
    log.after_step(state, report, wished[0])
    if number is not None:
        save_and_stop(state, save, number)
    save.after_step(state, report, wished[1], must=last)
    for evaluation, wish in zip(evaluations, wished[2:], strict=True):
        evaluation.after_step(state, report, wish)
    save.mark_best(state)


def save_and_stop(state: TrainState, save: SaveBeat, number: int | None) -> NoReturn:
    """Save the last step and end the run by an `Interrupted`, on all processes."""
    assert number is not None, "nothing else ends the waiting for data"
    save.must(state)
    raise Interrupted(f"after step {state.step}; saved in {save.store.folder}", number)
