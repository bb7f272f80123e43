"""The plan of a run: its length in steps, batch size and number of training samples, known before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmssl.core.config import Duration
from mmssl.core.errors import RecipeError
from mmssl.core.schedules import BaseScheduleConfig, Schedule, Scheduled


@dataclass(frozen=True)
class Plan:
    """Length of a run and of an epoch, with which durations become steps and values of a recipe schedules.

    Attributes:
        total_steps: optimizer steps of the run.
        batch_size: samples of the global batch.
        samples: samples of one epoch of the training stream; 0: there is no run, see `unknown`.
        path: key of the part of the recipe that is built, as "objective"; keys in errors start with it.
    """

    total_steps: int
    batch_size: int
    samples: int
    path: str = ""

    @classmethod
    def of(cls, duration: Duration, batch_size: int, samples: int) -> Plan:
        """The plan of a run of this length."""
        return cls(duration.steps(batch_size=batch_size, epoch_samples=samples), batch_size, samples)

    @classmethod
    def unknown(cls) -> Plan:
        """The plan of a model that is loaded or inspected, not trained: one step, and every duration is 0 steps."""
        return cls(total_steps=1, batch_size=1, samples=0)

    def below(self, key: str) -> Plan:
        """The plan for a part of what is built, which stands at `key` in its config."""
        return replace(self, path=self._key(key))

    def steps(self, duration: Duration) -> int:
        """Length of a duration in steps, rounded up."""
        if self.samples == 0:
            return 0
        return duration.steps(batch_size=self.batch_size, epoch_samples=self.samples, total_steps=self.total_steps)

    def steps_within(self, duration: Duration, key: str) -> int:
        """Length in steps of a part of the run.

        Args:
            duration: of the part.
            key: its name in the config that is built, for errors.

        Raises:
            RecipeError: it is longer than the run.
        """
        steps = self.steps(duration)
        if steps > self.total_steps:
            raise RecipeError(
                f"{self._key(key)} '{duration}' ({steps} steps): longer than the run of {self.total_steps} steps (duration); "
                "shorten it or lengthen the run"
            )
        return steps

    def schedule(self, value: Scheduled, key: str) -> Schedule:
        """A value of a recipe as a function of the step.

        Args:
            value: number, or schedule.
            key: its name in the config that is built, for errors.

        Raises:
            RecipeError: its durations are longer than the run.
        """
        return (
            value.resolve(self, self._key(key)) if isinstance(value, BaseScheduleConfig) else Schedule.constant(value)
        )

    def _key(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
