"""Why a run's loss does not fall: findings from its log, its recipe and its ledger of faults. Pure functions of what they hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mmssl.core.errors import RecipeError
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe
from mmssl.training import health
from mmssl.training.health import LINES, STILL, Finding, History, lines
from mmssl.training.log import INPUT_BOUND
from mmssl.training.runtime.jsonl import JsonLines

FEW = 0.1
"""Share of a batch below which too few samples have both modalities of a pair."""
AT_FLOOR = 0.1
"""Share of the way from the floor that duplicates set up to chance, below which a loss is at that floor."""
FAULTS = 0.01
"""Share of replaced samples from which they are a finding."""
LOW_RATE = 0.01
"""Share of the peak rate below which the rate is low, before the last LAST of the run."""
LAST = 0.05


def explain_history(history: History, recipe: Recipe, faults: Sequence[dict[str, Any]] = ()) -> list[Finding]:
    """Everything that the log lines of a run show, causes before their consequences; empty: nothing wrong is seen.

    Args:
        history: log lines, see `health.lines`.
        recipe: the run's.
        faults: records of its `faults.jsonl`.
    """
    rules: tuple[health.Rule, ...] = (
        health.skipped,
        partial(low_rate, peak=recipe.training.optimizer.lr),
        partial(frozen, recipe=recipe),
        partial(partners, batch_size=recipe.batch_size),
        health.gradients,
        health.collapse,
        health.floors,
        duplicates,
        health.limits,
        partial(health.chance, least=0.0, steps=0),
        partial(replaced, faults=faults),
        waiting,
    )
    return [finding for rule in rules for finding in rule(history)]


def explain_run(folder: Path) -> tuple[str, list[Finding]]:
    """A line on where the run stands, and its findings.

    Raises:
        RecipeError: the folder holds no log of a run, or a recipe that cannot be read.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise RecipeError(
            f"got {str(folder)!r}, which has no metrics.jsonl; give the folder of a run, such as runs/first"
        )
    history = lines(JsonLines(path).read())
    if len(history) < LINES:
        raise RecipeError(
            f"{path} has {len(history)} log lines, wanted at least {LINES} to judge by; train longer, or log more often "
            "(log.every)"
        )
    findings = explain_history(
        history, find_recipe(str(folder / "recipe.yaml")), JsonLines(folder / "faults.jsonl").read()
    )
    return standing(history), findings


def standing(history: History) -> str:
    """Where a run stands: its step, its loss then and now, chance."""
    first, last = history[0], history[-1]
    chance = f"; random guessing has {last['chance_loss']:.4g}" if last.get("chance_loss") is not None else ""
    return (
        f"step {last['step']}, {last['progress']:.0%} of the run: loss {_number(last['loss'])}, after {_number(first['loss'])} at "
        f"step {first['step']}{chance}"
    )


def low_rate(history: History, peak: float) -> Iterator[Finding]:
    """A learning rate far below its peak while the run is not near its end, or one at which nothing moves."""
    rate, progress = history[-1]["lr"], history[-1]["progress"]
    if rate <= STILL:
        yield from health.still(history)
    elif rate < LOW_RATE * peak and progress < 1 - LAST:
        rising = len(history) > 1 and rate > history[-2]["lr"]
        yield Finding(
            "rate",
            f"The learning rate is {rate:.3g}, of a peak of {peak:.3g}, with {progress:.0%} of the run done.",
            "The warm-up is long." if rising else "The schedule comes to its end before the run does.",
            "Shorten schedule.warmup, or wait." if rising else "Check schedule and duration.",
        )


def frozen(history: History, recipe: Recipe) -> Iterator[Finding]:
    """Frozen encoders that start from random weights."""
    for name, config in recipe.encoders.items():
        if config.frozen and config.unlocked_layers == 0 and not config.pretrained and recipe.weights is None:
            yield Finding(
                "frozen",
                f"encoders.{name} is frozen, and starts from random weights.",
                "Its features say little about its inputs, and never will.",
                f"Give encoders.{name}.weights, or remove frozen.",
            )


def partners(history: History, batch_size: int) -> Iterator[Finding]:
    """Pairs of modalities that few samples of a batch have."""
    for name in (name for name in history[-1] if name.endswith("/samples")):
        both = _recent(history, name)
        if both < FEW * batch_size:
            yield Finding(
                "absent",
                f"{both:.3g} of {batch_size} samples of a batch have both modalities of {name.removesuffix('/samples')!r}.",
                "The others lack a member of the sample, or have it under another extension.",
                "Check with `mmssl shards stats`, and set extensions of the modality.",
            )


def duplicates(history: History) -> Iterator[Finding]:
    """A loss that is nearly the lowest that repeated samples allow, where the objective is one pair."""
    last = history[-1]
    floors = [name for name in last if name.endswith("floor_loss")]
    if len(floors) != 1 or len([name for name in last if name.startswith("loss/")]) > 1:
        return
    pair = floors[0].removesuffix("floor_loss")
    names = ("loss", floors[0], f"{pair}chance_loss", f"{pair}duplicates")
    loss, floor, guess, share = (_recent(history, name) for name in names)
    weight = last["chance_loss"] / last[f"{pair}chance_loss"]
    if floor > 0 and loss / weight - floor < AT_FLOOR * (guess - floor):
        yield Finding(
            "duplicates",
            f"The loss is {loss:.4g}, and repeated samples allow no less than {weight * floor:.4g}: {share:.0%} of a batch have "
            f"the same {pair.strip('/')} item as another sample.",
            "Repeated captions are negatives of each other, which no model can tell apart.",
            "Set objective.duplicates to ignore, or judge by evaluators: the model may be as good as it can be.",
        )


def replaced(history: History, faults: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Many samples that could not be used and were replaced by others."""
    last = history[-1]
    counts = {name.removeprefix("skipped/"): value for name, value in last.items() if name.startswith("skipped/")}
    total = sum(counts.values())
    if total <= FAULTS * last["samples"]:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    worst = Counter((fault.get("shard"), fault.get("field")) for fault in faults).most_common(1)
    where = "".join(f" Most are {field!r} in {shard}." for (shard, field), _ in worst)
    yield Finding(
        "faults",
        f"{total / last['samples']:.1%} of the samples were replaced by others: {reasons}.{where}",
        "Usual causes: damaged shards, or another format than the modality expects.",
        "faults.jsonl names every one; check the shards with `mmssl shards check`.",
    )


def waiting(history: History) -> Iterator[Finding]:
    """Much time spent waiting for data."""
    share, speed = _recent(history, "data_wait"), _recent(history, "samples_per_second")
    if share >= INPUT_BOUND:
        yield Finding(
            "input",
            f"{share:.0%} of the time went into waiting for data: {speed:,.0f} samples/s, and about "
            f"{speed / max(1e-9, 1 - share):,.0f} with a perfect loader.",
            "Usual causes: too few workers, slow storage, large pictures.",
            "Raise data.workers; `mmssl bench data RECIPE` says which stage is slow, and the hours to gain.",
        )


def _recent(history: History, name: str) -> float:
    """Mean of a metric over the last lines that have it; NaN: none has."""
    values = [record[name] for record in history[-LINES:] if record.get(name) is not None]
    return fmean(values) if values else math.nan


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
