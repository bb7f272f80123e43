"""Learning-rate factors: equal to open_clip's schedules at every step, and to the formulas where open_clip has none."""

from __future__ import annotations

import math

import pytest
from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr
from pydantic import TypeAdapter, ValidationError

from mmssl.core.config import Duration
from mmssl.core.schedules import ConstantConfig, CosineConfig, ScheduleConfig


class Recorder:
    """Stands in for an optimizer: open_clip's schedules write into its groups."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, float]] = [{"lr": 0.0}]


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 10), (7, 50), (50, 50)])
def test_cosine_equals_open_clip_at_every_step(warmup: int, total: int) -> None:
    theirs = cosine_lr(Recorder(), 5e-4, warmup, total)
    config = CosineConfig()
    for step in range(total):
        assert 5e-4 * config.factor(step, warmup, total) == pytest.approx(theirs(step), rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "total", "cooldown", "power"), [(0, 20, 0, 1.0), (5, 20, 6, 1.0), (5, 20, 6, 2.0), (3, 9, 9, 0.5)]
)
def test_constant_equals_open_clip_at_every_step(warmup: int, total: int, cooldown: int, power: float) -> None:
    theirs = (
        const_lr_cooldown(Recorder(), 1e-3, warmup, total, cooldown, power)
        if cooldown
        else const_lr(Recorder(), 1e-3, warmup, total)
    )
    config = ConstantConfig(power=power)
    for step in range(total):
        assert 1e-3 * config.factor(step, warmup, total, cooldown) == pytest.approx(theirs(step), rel=1e-12)


def test_first_step_moves_and_the_peak_is_reached() -> None:
    config = CosineConfig()
    assert config.factor(0, 10, 100) == pytest.approx(0.1)
    assert config.factor(9, 10, 100) == 1.0
    assert config.factor(10, 10, 100) == 1.0
    assert 0 < config.factor(99, 10, 100) < 1e-3


def test_cosine_ends_at_its_final_share() -> None:
    config = CosineConfig(final=0.1)
    for step in range(5, 30):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 25))
        assert config.factor(step, 5, 30) == pytest.approx(expected, rel=1e-12)
    assert config.factor(30, 5, 30) == pytest.approx(0.1)


def test_configs_choose_by_kind() -> None:
    union = TypeAdapter(ScheduleConfig)
    constant = union.validate_json('{"kind": "constant", "warmup": "5 percent", "cooldown": "1 epoch"}')
    assert constant == ConstantConfig(warmup=Duration("5 percent"), cooldown=Duration("1 epoch"))
    assert isinstance(union.validate_json('{"kind": "cosine"}'), CosineConfig)
    with pytest.raises(ValidationError):
        union.validate_json('{"kind": "cosine", "final": 1.5}')
