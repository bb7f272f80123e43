"""The plan of a run: durations in steps."""

from __future__ import annotations

import pytest

from mmssl.core.config import Duration
from mmssl.core.errors import RecipeError
from mmssl.core.plan import Plan
from mmssl.core.schedules import LinearConfig, Schedule


def test_durations_become_steps_of_the_run() -> None:
    plan = Plan.of(Duration("3 epochs"), batch_size=10, samples=101)
    assert plan == Plan(total_steps=31, batch_size=10, samples=101)
    durations = ["7 steps", "1 epoch", "25 samples", "50 percent"]
    assert [plan.steps(Duration(text)) for text in durations] == [7, 11, 3, 16]


def test_the_length_of_a_run_is_no_percentage() -> None:
    with pytest.raises(ValueError, match="cannot be a percentage of itself"):
        Plan.of(Duration("50 percent"), 10, 100)


def test_without_a_run_every_duration_is_none() -> None:
    plan = Plan.unknown()
    assert (plan.total_steps, plan.samples) == (1, 0)
    assert [plan.steps(Duration(text)) for text in ("7 steps", "1 epoch", "25 samples", "50 percent")] == [0] * 4


def test_a_number_is_a_constant_schedule() -> None:
    assert Plan.unknown().schedule(0.25, "key") == Schedule.constant(0.25)


def test_errors_name_the_whole_key() -> None:
    plan = Plan(10, 1, 10).below("objective").below("objectives.a.objective")
    with pytest.raises(RecipeError, match=r"^objective\.objectives\.a\.objective\.momentum\.over '11 steps'"):
        plan.schedule(LinearConfig(start=0.5, final=1.0, over=Duration("11 steps")), "momentum")


def test_a_part_longer_than_the_run_is_refused() -> None:
    plan = Plan(10, 1, 10).below("objective")
    assert plan.steps_within(Duration("1 epochs"), "frozen") == 10
    with pytest.raises(
        RecipeError, match=r"^objective\.frozen '2 epochs' \(20 steps\): longer than the run of 10 steps"
    ):
        plan.steps_within(Duration("2 epochs"), "frozen")
    assert Plan.unknown().steps_within(Duration("2 epochs"), "frozen") == 0
