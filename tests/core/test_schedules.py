"""Schedules: equal to open_clip's at every step, or to formulas; those that cannot be meant are refused."""

from __future__ import annotations

import math
import pickle
from typing import Annotated, Any

import pytest
from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr
from pydantic import TypeAdapter, ValidationError

from mmssl.core.config import Config, Duration
from mmssl.core.errors import RecipeError
from mmssl.core.plan import Plan
from mmssl.core.schedules import (
    Bounds,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    Schedule,
    ScheduleConfig,
    Scheduled,
)


class Recorder:
    """Stands in for an optimizer: open_clip's schedules write into its groups."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, float]] = [{"lr": 0.0}]


def steps(count: int) -> Duration:
    return Duration(f"{count} steps")


def resolved(config: ScheduleConfig, total: int) -> Schedule:
    return Plan(total, batch_size=10, samples=100).schedule(config, "key")


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 10), (7, 50), (50, 50)])
def test_cosine_equals_open_clip_at_every_step(warmup: int, total: int) -> None:
    theirs = cosine_lr(Recorder(), 5e-4, warmup, total)
    schedule = resolved(CosineConfig(warmup=steps(warmup)), total)
    for step in range(total):
        assert 5e-4 * schedule(step) == pytest.approx(theirs(step), rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "total", "cooldown", "power"), [(0, 20, 0, 1.0), (5, 20, 6, 1.0), (5, 20, 6, 2.0), (3, 12, 9, 0.5)]
)
def test_constant_equals_open_clip_at_every_step(warmup: int, total: int, cooldown: int, power: float) -> None:
    theirs = (
        const_lr_cooldown(Recorder(), 1e-3, warmup, total, cooldown, power)
        if cooldown
        else const_lr(Recorder(), 1e-3, warmup, total)
    )
    config = ConstantConfig(warmup=steps(warmup), cooldown=steps(cooldown) if cooldown else None, power=power)
    schedule = resolved(config, total)
    for step in range(total):
        assert 1e-3 * schedule(step) == pytest.approx(theirs(step), rel=1e-12)


def test_first_step_moves_and_the_peak_is_reached() -> None:
    schedule = resolved(CosineConfig(warmup=steps(10)), 100)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(9) == 1.0
    assert schedule(10) == 1.0
    assert 0 < schedule(99) < 1e-3


@pytest.mark.parametrize("total", [30, 37])
def test_a_cosine_of_the_rate_is_the_formula_bit_for_bit(total: int) -> None:
    schedule = resolved(CosineConfig(final=0.1, warmup=steps(5)), total)
    for step in range(5, total):
        progress = (step - 5) / (total - 5)
        assert schedule(step) == 0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * progress))
    for step in range(5):
        assert schedule(step) == (step + 1) / 5


FORMULAS = {
    "linear": lambda a, b, p: a + (b - a) * p,
    "cosine": lambda a, b, p: b - (b - a) * (math.cos(math.pi * p) + 1) / 2,  # BYOL's momentum, DINO's teacher
    "exponential": lambda a, b, p: math.exp((1 - p) * math.log(a) + p * math.log(b)),
}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize(("start", "final"), [(0.996, 1.0), (0.07, 0.04)])
@pytest.mark.parametrize("over", [None, 8])
def test_values_lead_from_start_to_final(kind: str, start: float, final: float, over: int | None) -> None:
    given = {"kind": kind, "start": start, "final": final, "over": over and f"{over} steps"}
    schedule = Plan(20, 10, 100).schedule(TypeAdapter(Scheduled).validate_python(given, strict=False), "momentum")
    assert schedule(0) == start
    end = over or 20
    for step in range(end):
        assert schedule(step) == pytest.approx(FORMULAS[kind](start, final, step / end), rel=1e-12)
    assert [schedule(step) for step in (end, end + 5)] == [final, final]


def test_a_ramp_after_a_warmup_counts_from_the_start_of_the_run() -> None:
    schedule = resolved(LinearConfig(start=2.0, final=1.0, warmup=steps(4), over=Duration("50 percent")), 20)
    assert [schedule(step) for step in (0, 3, 4, 7, 10, 19)] == pytest.approx([0.5, 2, 2, 1.5, 1, 1])


def test_equal_schedules_are_equal_and_can_be_sent_to_processes() -> None:
    one, two = (resolved(CosineConfig(final=0.1, warmup=steps(5)), 30) for _ in range(2))
    assert one == two == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(two)
    assert one != resolved(CosineConfig(final=0.1, warmup=steps(6)), 30)
    assert Schedule.constant(0.5)(7) == 0.5
    assert [str(one), str(Schedule.constant(0.5))] == ["1 to 0.1", "0.5"]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (CosineConfig(warmup=steps(101)), r"key\.warmup '101 steps' \(101 steps\): longer than the run"),
        (ConstantConfig(warmup=Duration("12 epochs")), r"key\.warmup '12 epochs' \(120 steps\): .* 100 steps \(dur"),
        (ConstantConfig(cooldown=steps(101)), r"key\.cooldown '101 steps' \(101 steps\): longer than the run"),
        (
            ConstantConfig(warmup=steps(60), cooldown=Duration("50 percent")),
            r"warmup '60 steps' \(60 steps\) and key\.cooldown '50 percent' \(50 steps\): longer",
        ),
        (LinearConfig(over=steps(101)), r"key\.over '101 steps' \(101 steps\): longer than the run of 100 steps"),
        (
            ExponentialConfig(final=0.1, warmup=steps(60), over=Duration("50 percent")),
            r"key\.warmup '60 steps' \(60 steps\): longer than key\.over '50 percent' \(50 steps\)",
        ),
    ],
)
def test_schedules_that_are_longer_than_the_run_are_refused(config: ScheduleConfig, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        resolved(config, 100)
    Plan.unknown().schedule(config, "key")  # where there is no run, nothing is too long for it


def test_a_schedule_may_fill_the_run() -> None:
    whole = resolved(ConstantConfig(warmup=steps(50), cooldown=steps(50)), 100)
    assert [whole(49), whole(50), whole(99)] == pytest.approx([1, 1, 0.02])
    assert resolved(CosineConfig(warmup=steps(100)), 100)(99) == 1


class Settings(Config):
    """A config with a value."""

    momentum: Annotated[Scheduled, Bounds(ge=0, lt=1)] = 0.5
    temperature: Annotated[Scheduled, Bounds(gt=0)] = 1


def test_values_are_numbers_or_schedules() -> None:
    assert Settings().momentum == 0.5
    cosine = {"kind": "cosine", "start": 0.9, "final": 0.95, "over": "2 epochs"}
    settings = Settings(momentum=cosine, temperature=3)
    assert settings.momentum == CosineConfig(start=0.9, final=0.95, over="2 epochs")
    assert settings.temperature == 3
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    warmed = Settings(temperature={"kind": "constant", "start": 2.0, "warmup": "5 steps"}).temperature
    assert [Plan(10, 1, 1).schedule(warmed, "x")(step) for step in (0, 4, 9)] == pytest.approx([0.4, 2, 2])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"momentum": 1.0}, "got 1, wanted below 1"),
        ({"momentum": -0.5}, "got -0.5, wanted at least 0"),
        ({"momentum": {"kind": "linear", "start": 0.5, "final": 1.0}}, "got final 1, wanted below 1"),
        ({"momentum": {"kind": "cosine", "start": -0.5, "final": 0.5}}, "got start -0.5, wanted at least 0"),
        ({"temperature": {"kind": "linear", "start": 0.5, "final": 0.0}}, "got final 0, wanted above 0"),
        ({"temperature": {"kind": "constant", "start": 0.5, "cooldown": "5 steps"}}, "got final 0, wanted above 0"),
        ({"momentum": {"kind": "linear", "start": 0.5}}, "without final, wanted start and final"),
        ({"momentum": {"kind": "cosine"}}, "'cosine' without start and final, wanted start and final"),
        ({"momentum": {"kind": "constant"}}, "'constant' without start, wanted start"),
        ({"momentum": {"kind": "exponential", "start": 0.5, "final": 0.0}}, "greater than 0"),
        ({"momentum": {"kind": "linear", "start": 0.1, "final": 0.5, "over": "0 steps"}}, "wanted more than 0"),
        ({"momentum": {"kind": "step"}}, "'step'"),
        ({"momentum": "0.5"}, "valid number"),
        ({"momentum": True}, "valid number"),
    ],
)
def test_values_that_cannot_be_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Settings(**given)
