"""Periodic actions between steps: evaluation and checkpoints, with the interval rule of logging too."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mmssl.core.config import Config
from mmssl.core.distributed import attempt, gather_objects, is_main
from mmssl.core.errors import CheckpointError, MmsslError, RecipeError, Stopped, did_you_mean, os_words
from mmssl.core.evaluator import Evaluator, Score
from mmssl.training.checkpoints.write import CheckpointStore
from mmssl.training.runtime.console import say
from mmssl.training.runtime.jsonl import JsonLines, finite
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.lock import on_main
from mmssl.training.steps.compilation import eagerly
from mmssl.training.steps.report import StepReport
from mmssl.training.steps.state import Best, TrainState


class Every:
    """The interval of a periodic action: every N steps, every N minutes, or both.

    The main process' clock decides for all processes: its vote is sent with the step's finite check.
    """

    def __init__(
        self, steps: int | None = None, minutes: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"got a beat every {steps} steps, wanted at least 1")
        self.steps, self.minutes, self._clock = steps, minutes, clock
        self._last = clock()

    def wish(self) -> bool:
        """Whether the minutes are over by this process' clock; only the main process votes."""
        return is_main() and self.minutes is not None and self._clock() - self._last >= 60 * self.minutes

    def falls_on(self, step: int) -> bool:
        """Whether the action is due after `step` steps by their number."""
        return self.steps is not None and step % self.steps == 0

    def due(self, step: int, wished: bool) -> bool:
        """Whether the action is due after `step` steps, given the votes of all processes; restarts the clock if so."""
        due = wished or self.falls_on(step)
        if due:
            self._last = self._clock()
        return due


class Beat(ABC):
    """A periodic action that all processes run together between two steps."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self._done_at = -1

    @abstractmethod
    def beat(self, state: TrainState, report: StepReport | None) -> None:
        """Run the action. `report` is the step's; None for a step of an earlier session."""

    def after_step(self, state: TrainState, report: StepReport, wished: bool) -> None:
        """Run the action if it is due."""
        if self.every.due(state.step, wished):
            self.once(state, report)

    def once(self, state: TrainState, report: StepReport | None) -> None:
        """Run the action unless it already ran at this step."""
        if self._done_at != state.step:
            self._done_at = state.step
            self.beat(state, report)


class BestConfig(Config):
    """Keep the checkpoint with the best score of one metric.

    Attributes:
        metric: the score, as "<evaluator>/<metric>".
        mode: whether the largest or the smallest value is the best.
    """

    metric: str
    mode: Literal["max", "min"] = "max"

    def build(self) -> BestRule:
        """The rule."""
        return BestRule(self.metric, self.mode == "max")


@dataclass(frozen=True)
class BestRule:
    """Compares scores with the best so far, by one metric.

    Attributes:
        metric: the watched score, "<evaluator>/<metric>".
        larger: whether larger scores are better.
    """

    metric: str
    larger: bool = True

    @property
    def evaluator(self) -> str:
        """Name of the evaluator that measures it."""
        return self.metric.split("/")[0]

    def is_better(self, value: float, best: Best | None) -> bool:
        """Whether a score beats the best so far; a change of the watched metric starts anew."""
        if best is None or best.metric != self.metric:
            return True
        return value > best.value if self.larger else value < best.value


class EvaluateBeat(Beat):
    """Runs one evaluator on the averaged learner, or on the learner itself where no average is kept.

    In float32, as `mmssl evaluate` does, so that both give the same scores. The error of a failed evaluator is written as
    "<name>/error", and the run goes on unless the failed scores decide which checkpoint is the best.

    Args:
        every: when.
        name: prefix of its scores, "<name>/<metric>".
        evaluator: what to run.
        metrics: file to write scores to.
        launch: for its trackers.
        best: the rule of the best checkpoint, if its metric belongs to this evaluator.

    Raises:
        RecipeError: the watched metric is none of the evaluator's.
        MmsslError: before the end of the run, an evaluator failed whose metric is watched.
        Stopped: a signal came while the evaluator waited for its shards, on any process.
    """

    def __init__(
        self,
        every: Every,
        name: str,
        evaluator: Evaluator,
        metrics: JsonLines,
        launch: Launch,
        best: BestRule | None = None,
    ) -> None:
        super().__init__(every)
        self.name, self.metrics = name, metrics
        self._evaluator, self._launch = evaluator, launch
        self._best = best if best is not None and best.evaluator == name else None
        self._error = f"{name}/error"

    def beat(self, state: TrainState, report: StepReport | None) -> None:
        """See the base."""
        learner = state.ema.module if state.ema is not None else state.learner
        model = learner.embedding_model().eval()
        with eagerly(learner), self._launch.gathered(learner):
            mine = attempt(
                lambda: {f"{self.name}/{metric}": score for metric, score in self._evaluator.evaluate(model)}
            )
        state.learner.train()
        if isinstance(mine, Stopped):  # not evaluated, which is made up for after a resume
            raise mine
        if isinstance(mine, MmsslError):
            self._fail(state, mine)
            return
        # One process' words for all: scores that differ in their last bit must not send processes different ways.
        scores: dict[str, Score] = {name: finite(score) for name, score in gather_objects(mine)[0].items()}
        self._note(state, scores, state.step)
        if is_main():
            self.metrics.append({"step": state.step, **scores})
            self._launch.track({k: v for k, v in scores.items() if isinstance(v, int | float)}, state.step)
            headlines = {f"{self.name}/{metric}" for metric in self._evaluator.headlines} or scores.keys()
            heads = {k: v for k, v in scores.items() if k in headlines}
            shown = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in heads.items())
            say(f"{state.place} | {shown}")

    def open(self) -> None:
        """Open the evaluator's shards, so that what is wrong with them shows before the first step.

        Raises:
            DataError, RecipeError: see `Evaluator.open`.
        """
        try:
            self._evaluator.open()
        except MmsslError as error:
            raise error.saying(f"evaluators.{self.name}: {error}") from error

    def close(self) -> None:
        """Close the shards and workers that the evaluator keeps between runs."""
        self._evaluator.close()

    def catch_up(self, state: TrainState) -> None:
        """After a resume: take the scores so far from the file, and evaluate if the step is due and was not evaluated."""
        for record in on_main(self.metrics.read):
            scores = {name: score for name, score in record.items() if name.startswith(f"{self.name}/")}
            if scores and self._error not in scores:
                self._note(state, scores, record["step"])
                self._done_at = record["step"]
        if state.step > 0 and self.every.due(state.step, state.step >= state.total_steps):
            self.once(state, None)

    def _fail(self, state: TrainState, error: MmsslError) -> None:
        """Store the error in place of scores; end an unfinished run if the best checkpoint depends on them."""
        if self._best is not None:
            error = error.saying(
                f"{error}\n  save.best.metric: {self._best.metric!r} has no value at step {state.step}; fix the evaluator "
                "and run again, or remove save.best"
            )
        say(f"{state.place} | evaluators.{self.name} failed: {error}")
        if is_main():
            self.metrics.append({"step": state.step, self._error: str(error)})
        self._replace(state, {self._error: str(error)})
        state.failures[self.name] = error
        if self._best is not None and state.step < state.total_steps:
            raise error

    def _replace(self, state: TrainState, scores: dict[str, Score]) -> None:
        kept = {name: score for name, score in state.scores.items() if not name.startswith(f"{self.name}/")}
        state.scores = kept | scores

    def _note(self, state: TrainState, scores: dict[str, Score], step: int) -> None:
        self._replace(state, scores)
        state.failures.pop(self.name, None)
        if self._best is None:
            return
        metric = self._best.metric
        if metric not in scores:
            raise RecipeError(
                f"save.best.metric: got {metric!r}{did_you_mean(metric, scores)}; scores: {sorted(scores)}"
            )
        value = scores[metric]
        if isinstance(value, int | float) and self._best.is_better(value, state.best):
            state.best = Best(metric, float(value), step)


class SaveBeat(Beat):
    """Writes checkpoints: when due, when a score is the best so far, at the end and when stopped.

    A failed save (full disk) is reported and tried again when next due. Three failures in a row, or one at the end, raise an
    error; earlier checkpoints stay.

    Args:
        every: when.
        store: where to.
        background: whether the run goes on while a checkpoint is written, until the next one is due or the run ends.
    """

    MOST_FAILURES = 3

    def __init__(self, every: Every, store: CheckpointStore, background: bool = False) -> None:
        super().__init__(every)
        self.store, self.background = store, background
        self._failures, self._saved_at = 0, -1
        self._begun_at: int | None = None

    def beat(self, state: TrainState, report: StepReport | None) -> None:
        """See the base."""
        self._begin(state)
        if not self.background:
            self._finish()

    def after_step(self, state: TrainState, report: StepReport, wished: bool, *, must: bool = False) -> None:
        """See the base; with `must`, whether it is due or not."""
        if must:
            self.must(state)
        else:
            super().after_step(state, report, wished)

    def must(self, state: TrainState) -> None:
        """Save this step, unless it is already saved, and wait for it.

        Raises:
            CheckpointError: it cannot be saved.
        """
        self._finish(last_chance=self._begun_at == state.step)
        if self._saved_at != state.step:
            self._begin(state)
            self._finish(last_chance=True)

    def mark_best(self, state: TrainState) -> None:
        """If this step has the best score so far, save it unless it is saved, and keep it."""
        if state.best is None or state.best.step != state.step:
            return
        self._finish()
        if self._saved_at != state.step:
            self.once(state, None)
            self._finish()
        if self._saved_at == state.step:
            try:
                on_main(lambda: self.store.mark_best(state.step))
            except OSError as error:
                say(f"step {state.step}: cannot be marked as the best: {os_words(error)}")

    def _begin(self, state: TrainState) -> None:
        self._finish()
        state.join_faults()
        self.store.begin(state)
        self._begun_at = state.step

    def _finish(self, last_chance: bool = False) -> None:
        """Wait for the checkpoint that was begun, if there is one."""
        if self._begun_at is None:
            return
        step, self._begun_at = self._begun_at, None
        try:
            self.store.wait()
        except OSError as error:
            self._failures += 1
            message = f"step {step}: the checkpoint could not be saved: {os_words(error)}; older ones in {self.store.folder} stay"
            if last_chance or self._failures >= self.MOST_FAILURES:
                raise CheckpointError(message) from error
            say(message)
        else:
            self._failures, self._saved_at = 0, step
