"""The collapse alarm: each sign is seen where it is, healthy runs are left alone, and warnings survive interruptions."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.context import StepContext
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.training import health
from mmssl.training.health import Watch, falls, lines, trailing
from mmssl.training.runtime.jsonl import JsonLines
from tests.training.toys import Match, Stream, make_learner, make_run

CHANCE = math.log(64)


def line(number: int, total: int = 50, **changes: Any) -> dict[str, Any]:
    """A log line of a healthy run: the loss starts above chance, and falls."""
    done = number / total
    healthy = {
        "step": 10 * number, "progress": done, "loss": 1 + (CHANCE - 0.8) * math.exp(-5 * done), "chance_loss": CHANCE,
        "lr": 1e-3 * math.cos(1.5 * done), "skipped_steps": 0, "spread/image": 0.1 + 0.6 * done, "a-b/scale": 14 + 80 * done,
        "a-b/scale_limit": 100.0, "grad_norm": 1.0, "grad_norm/image": 0.7, "latent/target_std": 0.2 + done,
        "latent/target_std_least": 0.1,
    }  # fmt: skip
    return healthy | changes


def run(total: int = 50, **changes: Any) -> list[dict[str, Any]]:
    """All lines of a run, with the same changes in each; a change may be a function of the number."""
    return [
        line(n, total, **{name: value(n) if callable(value) else value for name, value in changes.items()})
        for n in range(1, total + 1)
    ]


def warnings(records: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, name of the finding) of all warnings."""
    watch = Watch()
    found = ((record["step"], watch(record)) for record in records)
    return [(step, finding.name) for step, finding in found if finding is not None]


SICK: dict[str, dict[str, Any]] = {
    "skipped": {"skipped_steps": lambda n: 2 * n},
    "rate": {"lr": 0.0},
    "gradient": {"grad_norm/image": 0.0},
    "collapse": {"spread/image": 0.004, "loss": CHANCE},
    "floor": {"latent/target_std": 0.05},
    "limit": {"a-b/scale": 100.0, "loss": 2.5},
    "chance": {"loss": lambda n: CHANCE * (1 + 0.01 * (-1) ** n)},
}


def test_every_rule_has_a_sick_run() -> None:
    found = {finding.name for sick in SICK.values() for rule in health.RULES for finding in rule(run(**sick)[:24])}
    assert found == set(SICK)


@pytest.mark.parametrize("name", SICK)
def test_a_sick_run_is_warned_of_once_and_again_when_it_persists(name: str) -> None:
    found = warnings(run(**SICK[name]))
    assert {what for _, what in found} == {name}
    steps = [step for step, _ in found]
    # From a tenth of the run on, five lines must show it, and ten that the loss does not fall; 200 steps that it is at chance.
    assert steps[0] in ((210,) if name == "chance" else (90, 100))
    assert all(later - earlier >= 100 for earlier, later in itertools.pairwise(steps))
    assert len(steps) <= 5
    if name not in ("limit", "chance"):  # the one is no sign in the second half, the other comes late
        assert len(steps) >= 4


@pytest.mark.parametrize("total", [10, 50, 400])
def test_a_healthy_run_trips_nothing(total: int) -> None:
    assert warnings(run(total)) == []


def test_starting_at_chance_is_healthy() -> None:
    """The loss stays at chance for a while, and leaves it after a hundred steps or so."""
    assert warnings(run(200, loss=lambda n: CHANCE * min(1.002 + 0.002 * (-1) ** n, 1.03 - 0.5 * n / 200))) == []


def test_a_short_run_of_a_small_model_is_healthy() -> None:
    """Losses of a real one, of 141 steps, logged every five."""
    losses = [
        5.100, 4.917, 4.854, 4.856, 4.851, 4.857, 4.846, 4.846, 4.843, 4.822, 4.763, 4.637, 4.574, 4.501, 4.4, 4.3, 4.225,
        4.2, 4.1, 4.060, 4.0, 3.98, 3.960, 3.9, 3.85, 3.821, 3.8, 3.8,
    ]  # fmt: skip
    assert warnings(run(28, loss=lambda n: losses[n - 1], chance_loss=4.852, step=lambda n: 5 * n)) == []


def test_reaching_the_limit_late_or_while_the_loss_falls_is_healthy() -> None:
    assert warnings(run(**{"a-b/scale": 100.0})) == []
    flat_at_the_end = {"loss": lambda n: max(1.5, 4 - n / 10), "a-b/scale": lambda n: 100.0 if n > 30 else 50.0}
    assert warnings(run(**flat_at_the_end)) == []


def test_a_sign_of_a_few_lines_is_none() -> None:
    def now_and_then(n: int) -> float:
        return 0.5 if n % 5 == 0 else 0.001

    assert warnings(run(**{"spread/image": now_and_then})) == []


def test_a_sentence_has_numbers_and_advice() -> None:
    (finding,) = health.collapse(run(**{"spread/image": 0.004}))
    assert "'image'" in finding.seen
    assert "0.004" in finding.seen
    assert "from step 10 to step 500" in finding.seen
    assert str(finding) == f"{finding.seen} {finding.cause} {finding.remedy}"
    (finding,) = health.skipped(run(skipped_steps=lambda n: 2 * n))
    assert "8 of the last 40 steps" in finding.seen
    (of_projections,) = health.collapse(run(**{"simsiam/spread": 0.0}))
    assert "'simsiam/projections'" in of_projections.seen


def test_projections_collapse_before_features_do() -> None:
    """At a spread of 0.03 an encoder may have just begun, and what the loss compares is as good as one point."""
    assert warnings(run(**{"spread/image": 0.03})) == []
    (finding,) = health.collapse(run(**{"byol/spread": 0.03}))
    assert "is 0.03 of 1, and was below 0.05 from step 10" in finding.seen


def test_only_the_cause_is_warned_of() -> None:
    """A collapsed run has the loss of chance, too."""
    assert {what for _, what in warnings(run(**{"spread/image": 0.0, "loss": CHANCE}))} == {"collapse"}


def test_numbers_that_are_not_finite_are_no_sign_of_anything_else() -> None:
    assert warnings(run(**{"loss": None, "spread/image": None, "grad_norm/image": None, "a-b/scale": None})) == []


def test_log_lines_are_told_from_scores() -> None:
    records = [line(1), {"step": 10, "zero_shot/acc1": 0.5}, line(2), {"step": 20, "zero_shot/loss": 1.0}]
    assert lines(records) == [records[0], records[2]]


def test_trailing_lines_have_no_gap() -> None:
    history = [{"x": x} for x in (1, 0, 1, 1, 1)]
    assert trailing(history, lambda record: record["x"] == 1, 3) == history[2:]
    assert trailing(history, lambda record: record["x"] == 1, 4) == []
    assert trailing([], lambda record: True, 1) == []


@pytest.mark.parametrize(("losses", "expected"), [([3, 3, 3, 3], False), ([3, 3, 2.9, 2.9], True), ([3, 3, 3], True)])
def test_a_loss_falls_by_the_means_of_lines(losses: list[float], expected: bool) -> None:
    assert falls(losses, 2) is expected


class Collapsing(Match):
    """Its features are one point, whatever the input."""

    def encode(self, batch: Any, ctx: StepContext) -> Latents:
        return {name: 0 * x + torch.ones_like(x) for name, x in super().encode(batch, ctx).items()}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        out = super().criterion(latents, ctx)
        return LossOutput({"match": out.total + 0 * latents["a"].sum()}, out.measure)

    def headline(self, scalars: Any) -> Headline:
        return Headline(scalars["chance"])


def alarms(folder: Path) -> list[tuple[int, str]]:
    records = JsonLines(folder / "metrics.jsonl").read()
    return [(r["step"], name) for r in records for name in r if name.startswith(health.ALARM)]


def test_a_run_warns_on_the_console_and_in_its_file_and_resumes_without_repeating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_run(tmp_path / "whole", 20, learner=make_learner(Collapsing))
    whole.train()
    said = [row for row in capsys.readouterr().err.splitlines() if "warning: " in row]
    found = alarms(tmp_path / "whole")
    assert len(found) == len(said) >= 2
    assert "step  6/20 | warning: " in said[0]

    for stop in (7, 13, 99):  # with a checkpoint every four steps
        part = make_run(tmp_path / "parts", 20, stream=Ending(stop), learner=make_learner(Collapsing))
        with suppress(Enough):
            part.train()
    assert alarms(tmp_path / "parts") == found


class Enough(Exception):
    """A run has been killed."""


class Ending(Stream):
    """Gives no batch from a step on."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop

    def act(self, step: int) -> None:
        if step >= self.stop:
            raise Enough
