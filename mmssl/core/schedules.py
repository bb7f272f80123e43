"""Schedules of a rate, momentum, temperature or weight: pure functions of the 0-based optimizer step.

A value of a recipe that may change over the run has the type `Scheduled`: a number, or a schedule. `Plan.schedule` turns both into
a `Schedule`, whose lengths are steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema, core_schema

from mmssl.core.config import Config, Duration, PositiveDuration
from mmssl.core.errors import RecipeError

if TYPE_CHECKING:
    from mmssl.core.plan import Plan

NUMBER = "[number]"
"""What stands in the locations of pydantic's errors for a value that is no schedule."""
CurveKind = Literal["power", "cosine", "exponential"]


@dataclass(frozen=True)
class Schedule:
    """A value at each 0-based step: linear warm-up from zero, then `start`, a curve, and `final`.

    Equal settings are equal schedules. The first step of a warm-up already has a value above zero (open_clip's convention), and the
    curve has its first value, `start`, at step `begin`.

    Attributes:
        start: value after the warm-up.
        final: value from step `stop` on.
        begin, stop: steps between which the curve leads from `start` to `final`.
        warmup: steps of the linear rise from zero to `start`.
        curve: "power": final + (start - final) * (1 - progress) ** power; "cosine": half a cosine; "exponential": geometric
            interpolation, start ** (1 - progress) * final ** progress.
        power: exponent of the curve "power"; 1: linear.
    """

    start: float
    final: float
    begin: int = 0
    stop: int = 0
    warmup: int = 0
    curve: CurveKind = "power"
    power: float = 1.0

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same value at every step."""
        return cls(value, value)

    @classmethod
    def of(cls, value: float | Schedule) -> Schedule:
        """The schedule itself, or a number as one."""
        return value if isinstance(value, Schedule) else cls.constant(value)

    @property
    def changes(self) -> bool:
        """Whether the value is not the same at all steps."""
        return self.start != self.final or self.warmup > 0

    def __call__(self, step: int) -> float:
        """The value at a 0-based step."""
        if step < self.warmup:
            return self.start * ((step + 1) / self.warmup)
        if step < self.begin:
            return self.start
        if step >= self.stop:
            return self.final
        progress = (step - self.begin) / (self.stop - self.begin)
        match self.curve:
            case "exponential":
                return float(self.start * (self.final / self.start) ** progress)
            case "cosine":
                remaining = 0.5 * (1 + math.cos(math.pi * progress))
            case "power":
                remaining = (1 - progress) ** self.power
        return self.final + (self.start - self.final) * remaining

    def __str__(self) -> str:
        return f"{self.start:g}" + (f" to {self.final:g}" if self.final != self.start else "")


class BaseScheduleConfig(Config, ABC):
    """Base of schedules: a linear warm-up to the value `start`.

    Attributes:
        start: value after the warm-up; of a learning rate, as a share of the peak.
        warmup: length of the linear rise from zero to `start`.
    """

    kind: str
    start: float = 1.0
    warmup: Duration = Duration("0 steps")

    @abstractmethod
    def resolve(self, plan: Plan, key: str) -> Schedule:
        """The schedule with its durations turned into steps of a run.

        Args:
            plan: of the run.
            key: path of the schedule in the recipe, for errors.

        Raises:
            RecipeError: a duration is longer than the run, or the warm-up longer than what it is a part of.
        """


class ConstantConfig(BaseScheduleConfig):
    """Linear warm-up, then a constant; with `cooldown`, a decay (1 - progress) ** power to zero at the end.

    Attributes:
        cooldown: length of the decay to zero at the end; None: none.
        power: exponent of that decay; 1: linear.
    """

    kind: Literal["constant"] = "constant"
    cooldown: PositiveDuration | None = None
    power: float = Field(default=1.0, gt=0)

    @property
    def final(self) -> float:
        """Value at the end of the run."""
        return self.start if self.cooldown is None else 0.0

    def resolve(self, plan: Plan, key: str) -> Schedule:
        """See the base."""
        parts = {"warmup": self.warmup} | ({"cooldown": self.cooldown} if self.cooldown is not None else {})
        steps = _steps_within_run(parts, plan, key)
        begin = plan.total_steps - steps.get("cooldown", 0)
        return Schedule(self.start, self.final, begin, plan.total_steps, steps["warmup"], power=self.power)


class RampConfig(BaseScheduleConfig):
    """Base of schedules that lead from `start` to another value.

    Attributes:
        over: point of the run, counted from its start, at which `final` is reached and kept; None: the end of the run.
    """

    curve: ClassVar[CurveKind]
    final: float = 0.0
    over: PositiveDuration | None = None

    def resolve(self, plan: Plan, key: str) -> Schedule:
        """See the base."""
        warmup = _steps_within_run({"warmup": self.warmup}, plan, key)["warmup"]
        stop = plan.total_steps
        if self.over is not None:
            stop = _steps_within_run({"over": self.over}, plan, key)["over"]
            if warmup > stop:
                raise RecipeError(
                    f"{key}.warmup '{self.warmup}' ({warmup} steps): longer than {key}.over '{self.over}' ({stop} steps), which "
                    "counts from the start of the run; shorten the warm-up, or lengthen `over`"
                )
        return Schedule(self.start, self.final, warmup, stop, warmup, self.curve)


class LinearConfig(RampConfig):
    """Linear warm-up, then a straight line from `start` to `final`.

    Attributes:
        final: value at the end; of a learning rate, as a share of the peak.
    """

    curve = "power"
    kind: Literal["linear"] = "linear"


class CosineConfig(RampConfig):
    """Linear warm-up, then half a cosine from `start` to `final` (open_clip's schedule for final = 0).

    Attributes:
        final: value at the end; of a learning rate, as a share of the peak.
    """

    curve = "cosine"
    kind: Literal["cosine"] = "cosine"


class ExponentialConfig(RampConfig):
    """Linear warm-up, then a geometric interpolation: equal factors in equal times from `start` to `final`, both above 0.

    Attributes:
        final: value at the end; of a learning rate, as a share of the peak.
    """

    curve = "exponential"
    kind: Literal["exponential"] = "exponential"
    start: float = Field(default=1.0, gt=0)
    final: float = Field(gt=0)


def _steps_within_run(parts: dict[str, Duration], plan: Plan, key: str) -> dict[str, int]:
    """Name -> steps of durations that together must not be longer than the run."""
    steps = {name: plan.steps(duration) for name, duration in parts.items()}
    if sum(steps.values()) > plan.total_steps:
        got = " and ".join(f"{key}.{name} '{parts[name]}' ({n} steps)" for name, n in steps.items() if n)
        raise RecipeError(
            f"{got}: longer than the run of {plan.total_steps} steps (duration); shorten the schedule or lengthen the run"
        )
    return steps


ScheduleConfig = ConstantConfig | LinearConfig | CosineConfig | ExponentialConfig


def _tag(value: Any) -> str | None:
    """The kind of a schedule, as a mapping or built; `NUMBER` for everything else."""
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", NUMBER)


def _stated(value: float | ScheduleConfig) -> float | ScheduleConfig:
    """Refuse a schedule of a value that leaves one of its ends to a default, which is meant for rates."""
    if isinstance(value, BaseScheduleConfig):
        ends = [name for name in ("start", "final") if name in type(value).model_fields]
        missing = [name for name in ends if name not in value.model_fields_set]
        if missing:
            raise ValueError(
                f"got a schedule of kind '{value.kind}' without {' and '.join(missing)}, wanted {' and '.join(ends)}: "
                "a value has no default for them"
            )
    return value


Scheduled = Annotated[
    Annotated[float, Tag(NUMBER)]
    | Annotated[ConstantConfig, Tag("constant")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[CosineConfig, Tag("cosine")]
    | Annotated[ExponentialConfig, Tag("exponential")],
    Discriminator(_tag),
    AfterValidator(_stated),
]
"""A value of a recipe that may change over the run: a number, or a schedule that states `start` and `final`."""


@dataclass(frozen=True)
class Bounds:
    """Marks a `Scheduled` or a schedule with the values it may take: `Annotated[Scheduled, Bounds(ge=0, le=1)]`.

    The number, or `start` and `final`, are checked; a curve stays between them. A warm-up starts near 0, whatever the bounds.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def metadata(self) -> list[Any]:
        """The bounds as constraints of a number, as those of `pydantic.Field`."""
        limits = ((Ge, self.ge), (Gt, self.gt), (Le, self.le), (Lt, self.lt))
        return [constraint(limit) for constraint, limit in limits if limit is not None]

    def check(self, value: Any) -> Any:
        """Return a number or a schedule that is within the bounds.

        Raises:
            ValueError: it is not; names the end of the schedule.
        """
        ends = {"start ": value.start, "final ": value.final} if isinstance(value, ScheduleConfig) else {"": value}
        for name, x in ends.items():
            wanted = [
                f"at least {self.ge:g}" if self.ge is not None and not x >= self.ge else "",
                f"above {self.gt:g}" if self.gt is not None and not x > self.gt else "",
                f"at most {self.le:g}" if self.le is not None and not x <= self.le else "",
                f"below {self.lt:g}" if self.lt is not None and not x < self.lt else "",
            ]
            if any(wanted):
                raise ValueError(f"got {name}{x:g}, wanted {', '.join(filter(None, wanted))}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))
