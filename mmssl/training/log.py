"""The log of a run: every number of a step in `metrics.jsonl` and the trackers, a few on the console."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from mmssl.core.distributed import is_main
from mmssl.core.objective import Headline
from mmssl.training.beats import Beat, Every
from mmssl.training.health import ALARM, Watch, lines
from mmssl.training.runtime.console import say
from mmssl.training.runtime.jsonl import JsonLines, finite
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.optim import current_rate
from mmssl.training.steps.report import StepReport
from mmssl.training.steps.state import TrainState

INPUT_BOUND = 0.25
"""Share of the time waiting for data, in two log lines in a row, from which the log line says "input-bound"."""


class LogBeat(Beat):
    """Writes the last step's numbers to `metrics.jsonl` and the trackers, and the main ones to the console.

    Args:
        every: when.
        metrics: the file.
        launch: for its trackers.
    """

    def __init__(self, every: Every, metrics: JsonLines, launch: Launch) -> None:
        super().__init__(every)
        self.metrics, self._launch = metrics, launch
        self._waited = self._worked = 0.0
        self._samples = self._step = 0
        self._watch = Watch()
        self._slow = False  # whether the last line's time was spent waiting for data

    def timed(self, waited: float, worked: float) -> None:
        """Add the seconds of one iteration: waiting for the batch, and the rest."""
        self._waited += waited
        self._worked += worked

    def beat(self, state: TrainState, report: StepReport | None) -> None:
        """See the base."""
        assert report is not None
        state.join_faults()
        scalars = report.scalars()
        if not is_main():
            return
        seconds = self._waited + self._worked
        speed = (state.samples - self._samples) / seconds if seconds > 0 else 0.0
        waiting = self._waited / seconds if seconds > 0 else 0.0
        remaining = (state.total_steps - state.step) * seconds / max(1, state.step - self._step)
        headline = state.learner.objective.headline(scalars)
        record = {
            **scalars,
            **({} if headline.chance is None else {"chance_loss": headline.chance}),
            "progress": state.step / state.total_steps,
            "lr": current_rate(state.optimizer),
            "samples": state.samples,
            "skipped_steps": state.skipped_steps,
            **{f"skipped/{reason}": count for reason, count in state.faults.items()},
            **{f"share/{name}": drawn.share for name, drawn in state.stream.drawn().items()},
            **{f"passes/{name}": drawn.passes for name, drawn in state.stream.drawn().items()},
            **{f"notes/{note}": count for note, count in state.notes.items()},
            "samples_per_second": speed,
            "data_wait": waiting,
        }
        line = {"step": state.step, **{name: finite(value) for name, value in record.items()}}
        finding = self._watch(line)
        self.metrics.append(line if finding is None else {**line, f"{ALARM}/{finding.name}": str(finding)})
        self._launch.track(record, state.step)
        say(self._line(state, scalars["loss"], headline, speed, waiting, timedelta(seconds=round(remaining))))
        if finding is not None:
            say(f"{state.place} | warning: {finding}")
        self._waited = self._worked = 0.0
        self._samples, self._step = state.samples, state.step

    def start(self, state: TrainState) -> None:
        """Begin a session at the state's step, after the lines of earlier ones."""
        self._samples, self._step = state.samples, state.step
        if is_main():
            for record in lines(self.metrics.read()):
                self._watch(record)

    def _line(
        self,
        state: TrainState,
        loss: float,
        headline: Headline,
        speed: float,
        waiting: float,
        remaining: timedelta,
    ) -> str:
        """One line for the console."""
        chance = f" (chance {_figure(headline.chance)})" if headline.chance is not None else ""
        slow, self._slow = self._slow and waiting >= INPUT_BOUND, waiting >= INPUT_BOUND
        pieces = [
            state.place,
            f"loss {_figure(loss)}{chance}",
            *(f"{name} {_figure(value)}" for name, value in headline.figures.items()),
            f"{speed:,.0f} samples/s",
            _input_bound(waiting, speed, remaining) if slow else "",
            f"ETA {remaining}",
            f"{state.skipped_steps} steps skipped (not finite)" if state.skipped_steps else "",
            _counted("samples skipped", state.faults),
            _counted("noted", state.notes),
        ]
        return " | ".join(piece for piece in pieces if piece)


def _input_bound(waiting: float, speed: float, remaining: timedelta) -> str:
    saved = timedelta(seconds=round(remaining.total_seconds() * waiting))
    return (
        f"input-bound: {waiting:.0%} of the time waiting for data, {speed / (1 - waiting):,.0f} samples/s without, "
        f"{saved} saved (mmssl bench data)"
    )


def _counted(what: str, counts: Mapping[str, int]) -> str:
    return f"{what}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) if counts else ""


def _figure(value: float) -> str:
    """Format a number with up to three decimals."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
