"""Learning-rate schedules: pure functions of the 0-based optimizer step, applied before the forward pass."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from mmssl.core.config import Config, Duration, PositiveDuration


def warmup(step: int, steps: int) -> float:
    """Linear warm-up factor, (step + 1) / steps: the first step already moves (open_clip's convention)."""
    return (step + 1) / steps


class CosineConfig(Config):
    """Linear warm-up, then half a cosine from the peak to `final` of it (open_clip's schedule for final = 0).

    Attributes:
        warmup: length of the linear rise from zero to the peak.
        final: share of the peak at which the run ends.
    """

    kind: Literal["cosine"] = "cosine"
    warmup: Duration = Duration("0 steps")
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """Multiplier of the peak rate at `step` of `total_steps`."""
        if step < warmup_steps:
            return warmup(step, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class ConstantConfig(Config):
    """Linear warm-up, then the peak rate; with `cooldown`, a decay (1 - progress) ** power to zero at the end.

    Attributes:
        warmup: length of the linear rise from zero to the peak.
        cooldown: length of the decay to zero at the end; None: none.
        power: exponent of that decay; 1: linear.
    """

    kind: Literal["constant"] = "constant"
    warmup: Duration = Duration("0 steps")
    cooldown: PositiveDuration | None = None
    power: float = Field(default=1.0, gt=0)

    def factor(self, step: int, warmup_steps: int, total_steps: int, cooldown_steps: int = 0) -> float:
        """Multiplier of the peak rate at `step` of `total_steps`."""
        if step < warmup_steps:
            return warmup(step, warmup_steps)
        start = total_steps - cooldown_steps
        return 1.0 if step < start else (1 - (step - start) / cooldown_steps) ** self.power


ScheduleConfig = CosineConfig | ConstantConfig
