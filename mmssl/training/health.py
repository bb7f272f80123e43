"""Signs of a run that does not learn, read from its log: pure functions of the records in `metrics.jsonl`.

Each rule reads the last log lines and says what is seen, what usually causes it, and what to try. `Watch` runs the rules during
training; `mmssl explain` runs them, and more, afterwards.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import gt, le
from statistics import fmean
from typing import Any

from mmssl.core.monitors import SPREAD

LogRecord = Mapping[str, Any]
"""One log line: metric -> value; None: not finite."""
History = Sequence[LogRecord]
"""Log lines in the order of steps."""

ALARM = "alarm"
"""Name of warnings in `metrics.jsonl`, before "/" and the name of the finding."""
LINES = 5
"""Log lines in a row that must show a sign."""
WARM_UP = 0.1
"""Share of the run in which `Watch` is silent: healthy runs start near the loss of random guessing."""
REPEAT = 0.2
"""Share of the run after which `Watch` repeats a warning that persists."""
COLLAPSED = 0.01
"""Spread of features below which they have collapsed: at 0.01 the mean cosine of two samples is 0.9999."""
COLLAPSED_PROJECTIONS = 0.05
"""The same of projections, which the loss compares: encoders start with less spread than heads. Mean cosine 0.9975."""
NEAR_CHANCE = 0.02
"""Relative distance from the loss of random guessing that counts as equal."""
AT_CHANCE = 200
"""Steps that the loss must stay there, and at least `WARM_UP` of the run: a small model takes 50 to leave chance, however short its
run, a large one some hundred of a run of many thousand."""
LEAVES_CHANCE = 0.002
"""Share by which the loss must fall, and be below chance, to count as leaving it."""
STILL = 1e-9
"""Learning rate at which float32 weights stay as they are."""
SKIPPED = 0.05
"""Share of skipped steps above which they are a sign."""
FALLS = 0.01
"""Share by which the mean loss of some lines must be lower than that of as many before, to count as falling."""

_SPREAD = re.compile(rf"{SPREAD}/(?P<name>.+)|((?P<child>.+)/)?{SPREAD}")


@dataclass(frozen=True)
class Finding:
    """A sign of trouble.

    Attributes:
        name: which sign, one word.
        seen: what the log shows, with numbers.
        cause: what usually causes it.
        remedy: what to try.
    """

    name: str
    seen: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.seen} {self.cause} {self.remedy}"


Rule = Callable[[History], Iterator[Finding]]


def lines(records: Sequence[LogRecord]) -> list[LogRecord]:
    """The log lines among the records of `metrics.jsonl`; the others are scores of evaluators."""
    return [record for record in records if "loss" in record and "progress" in record]


def trailing(history: History, holds: Callable[[LogRecord], bool], least: int = LINES) -> list[LogRecord]:
    """The last lines, without a gap, for which something holds, oldest first; empty if they are fewer than `least`."""
    found = list(takewhile(holds, reversed(history)))[::-1]
    return found if len(found) >= least else []


def metric_trailing(history: History, name: str, holds: Callable[[float], bool]) -> list[LogRecord]:
    """`trailing` lines in which a metric is there, finite, and as `holds` wants it."""
    return trailing(history, lambda record: record.get(name) is not None and holds(record[name]))


def falls(losses: Sequence[float | None], least: int = LINES, share: float = FALLS) -> bool:
    """Whether the mean of the last `least` losses is lower by a share than that of as many before; True if there are fewer."""
    known = [loss for loss in losses[-2 * least :] if loss is not None]
    if len(known) < 2 * least:
        return True
    before, after = fmean(known[:least]), fmean(known[least:])
    return after < before - share * abs(before)


def _span(found: History) -> str:
    return f"from step {found[0]['step']} to step {found[-1]['step']}"


def skipped(history: History) -> Iterator[Finding]:
    """Many steps with a loss or gradient that is not finite."""
    if len(history) < LINES:
        return
    first, last = history[-LINES], history[-1]
    count, steps = last["skipped_steps"] - first["skipped_steps"], last["step"] - first["step"]
    if count > SKIPPED * steps:
        yield Finding(
            "skipped",
            f"{count} of the last {steps} steps were skipped, because loss or gradient was not finite.",
            "Usual causes: a learning rate that is too high, half precision that overflows, damaged samples.",
            "Lower optimizer.lr, set clip_norm, try precision bf16 or fp32; the keys are in bad_batches.jsonl.",
        )


def still(history: History) -> Iterator[Finding]:
    """A learning rate at which nothing moves."""
    found = metric_trailing(history, "lr", lambda rate: rate <= STILL)
    if found:
        yield Finding(
            "rate",
            f"The learning rate is {found[-1]['lr']:.3g}, and has been next to nothing {_span(found)}: the weights do not move.",
            "Usual causes: a schedule that has ended before the run, or a wrong optimizer.lr.",
            "Check optimizer.lr, schedule and duration.",
        )


def gradients(history: History) -> Iterator[Finding]:
    """Parts that get no gradient."""
    parts = [name for name in history[-1] if name.startswith("grad_norm/")] if history else []
    for name in parts:
        found = metric_trailing(history, name, lambda norm: norm == 0)
        if found:
            part = name.removeprefix("grad_norm/")
            yield Finding(
                "gradient",
                f"No gradient has reached {part!r} {_span(found)}.",
                "Usual causes: every sample lacks that modality, or its features have collapsed to one point.",
                "Check the shards with `mmssl shards check`, and modalities in the recipe; or set frozen if that is meant.",
            )


def collapse(history: History) -> Iterator[Finding]:
    """Features that are the same for all samples."""
    for name in history[-1] if history else ():
        match = _SPREAD.fullmatch(name)
        if match is None:
            continue
        least = COLLAPSED if match["name"] else COLLAPSED_PROJECTIONS
        found = metric_trailing(history, name, partial(gt, least))
        if found:
            whose = match["name"] or "/".join(filter(None, (match["child"], "projections")))
            yield Finding(
                "collapse",
                f"The features of {whose!r} have collapsed: their spread is {found[-1][name]:.2g} of 1, and was below {least} "
                f"{_span(found)}.",
                "Usual causes: inputs that are all alike, partners that do not belong together, a learning rate that is too high.",
                "Look at some samples; lower optimizer.lr, warm up longer. Check what prevents collapse: predictor, teacher's "
                "momentum, weights of terms.",
            )


def floors(history: History) -> Iterator[Finding]:
    """Figures so low that something has collapsed: every metric with a `<metric>_least` beside it, as the spread of targets."""
    for name in history[-1] if history else ():
        least = history[-1].get(f"{name}_least")
        found = [] if least is None else metric_trailing(history, name, partial(gt, least))
        if found:
            yield Finding(
                "floor",
                f"{name!r} is {found[-1][name]:.2g}, and was below {least:g} {_span(found)}: what it measures has collapsed.",
                "Usual causes: a teacher that follows too fast, weak terms against collapse, a learning rate that is too high, "
                "inputs that are all alike.",
                "Raise the teacher's momentum or the weights of those terms, check centring and predictor. Lower optimizer.lr, "
                "warm up longer; look at some samples.",
            )


def limits(history: History) -> Iterator[Finding]:
    """Learned figures at their bound: every metric with a `<metric>_limit` beside it, such as a logit scale."""
    for name in history[-1] if history else ():
        limit = history[-1].get(f"{name}_limit")
        found = [] if limit is None else metric_trailing(history, name, partial(le, 0.999 * limit))
        if found:
            yield Finding(
                "limit",
                f"{name!r} is {found[-1][name]:.4g}, at its limit {_span(found)}.",
                "Late in a long run that is usual; early it means pairs that repeat each other, or a limit that is too low.",
                "Look for duplicates, start with a higher temperature, or raise max_scale.",
            )


def early_limits(history: History) -> Iterator[Finding]:
    """`limits` in the first half of a run whose loss does not fall: later, a healthy run may be there too."""
    if history and history[-1]["progress"] < 0.5 and not falls([record["loss"] for record in history]):
        yield from limits(history)


def chance(history: History, least: float = WARM_UP, steps: int = AT_CHANCE) -> Iterator[Finding]:
    """A loss that is that of random guessing, or of collapsed features, through a share of the run and a number of steps."""

    def guesses(record: LogRecord) -> bool:
        loss, chance = record["loss"], record.get("chance_loss")
        return loss is not None and chance is not None and abs(loss - chance) <= NEAR_CHANCE * chance

    found = trailing(history, guesses)
    span = (found[-1]["progress"] - found[0]["progress"], found[-1]["step"] - found[0]["step"]) if found else (-1.0, 0)
    if span[0] < least or span[1] < steps:
        return
    # Over chance, because that differs between batches where duplicates are left out.
    ratios = [record["loss"] / record["chance_loss"] for record in found]
    half = len(ratios) // 2
    leaves = falls(ratios, half, LEAVES_CHANCE) and fmean(ratios[-half:]) < 1 - LEAVES_CHANCE
    if not leaves:
        yield Finding(
            "chance",
            f"The loss is {found[-1]['loss']:.4g}, that of random guessing ({found[-1]['chance_loss']:.4g}), and did not fall "
            f"{_span(found)}.",
            "Usual causes: partners that do not belong together, a learning rate that is too low or too high, a teacher's "
            "temperature that is not below the student's.",
            "Look at some pairs in the shards; try a third and three times of optimizer.lr, and a longer warm-up.",
        )


RULES: tuple[Rule, ...] = (skipped, still, gradients, collapse, floors, early_limits, chance)
"""What `Watch` looks for: causes first, their consequences after them."""


def _is_past(old: LogRecord, now: LogRecord) -> bool:
    """Whether a line is so old that no rule needs it."""
    return bool(now["progress"] - old["progress"] > WARM_UP and now["step"] - old["step"] > AT_CHANCE)


class Watch:
    """Collapse alarm: reads log lines as they are written, and warns once of a sign, and rarely again while it persists.

    After a resume it reads the lines of earlier sessions, so that warnings do not depend on interruptions.
    """

    def __init__(self) -> None:
        self._recent: deque[LogRecord] = deque()
        self._said: dict[str, float] = {}

    def __call__(self, record: LogRecord) -> Finding | None:
        """The finding to warn of after this line, the first of `RULES`, or None."""
        self._recent.append(record)
        progress = record["progress"]
        while len(self._recent) > 2 * LINES and _is_past(self._recent[1], record):
            self._recent.popleft()
        if sum(line["progress"] >= WARM_UP for line in self._recent) < LINES:
            return None
        finding = next((finding for rule in RULES for finding in rule([*self._recent])), None)
        if finding is None or progress - self._said.get(finding.name, -1) < REPEAT:
            return None
        self._said[finding.name] = progress
        return finding
