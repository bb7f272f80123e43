"""The forgetting guard: the rule, the table, averages and soups of states, settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.recipe.average import average_states, greedy_soup
from mmssl.recipe.keep import KeepConfig, Point, choose_point, points_table

OLD = {"kind": "retrieval", "shards": ["old"], "pair": ["image", "text"]}


def keep(**changes: Any) -> KeepConfig:
    values = {"evaluators": {"old": OLD}, "old": "old/acc", "new": "new/acc", "largest_loss": 0.01}
    return KeepConfig.model_validate_json(json.dumps(values | changes))


def points(old: list[float], new: list[float]) -> list[Point]:
    shares = [i / (len(old) - 1) for i in range(len(old))]
    return [Point(s, {"old/acc": a, "new/acc": b}) for s, a, b in zip(shares, old, new, strict=True)]


@pytest.mark.parametrize(
    ("old", "new", "loss", "share"),
    [
        ([0.60, 0.61, 0.595, 0.50], [0.2, 0.4, 0.7, 0.9], 0.01, 2 / 3),
        ([0.60, 0.61, 0.595, 0.50], [0.2, 0.4, 0.7, 0.9], 0.0, 1 / 3),
        ([0.60, 0.61, 0.595, 0.50], [0.2, 0.4, 0.7, 0.9], 0.1, 1.0),
        ([0.60, 0.50, 0.50, 0.50], [0.2, 0.4, 0.7, 0.9], 0.01, 0.0),  # nothing is kept but the start
        ([0.60, 0.60, 0.60, 0.60], [0.2, 0.7, 0.7, 0.1], 0.01, 1 / 3),  # a tie: the earliest
    ],
)
def test_the_best_new_score_of_those_that_keep_the_old_one(
    old: list[float], new: list[float], loss: float, share: float
) -> None:
    assert choose_point(points(old, new), keep(largest_loss=loss)).share == pytest.approx(share)


def test_the_table_has_intervals_and_marks_the_choice() -> None:
    found = points([0.6, 0.5], [0.2, 0.9])
    found[0] = Point(0.0, {**found[0].scores, "old/acc_ci95_low": 0.55, "old/acc_ci95_high": 0.65})
    lines = points_table(found, found[0], keep()).splitlines()
    assert "0.600 [0.550, 0.650]" in lines[1]
    assert [line.strip().startswith("*") for line in lines] == [False, True, False, True]
    with pytest.raises(RecipeError, match="got no number for the score 'new/acc', wanted one of old/acc"):
        points_table([Point(0.0, {"old/acc": 0.5})], found[0], keep())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"old": "other/acc"}, r"wanted '<evaluator>/<metric>' of keep.evaluators: \['old'\]"),
        ({"new": "new/image_to_text_mean_rank"}, "of which less is better; wanted a score of which more is"),
        ({"points": 1}, "greater"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        keep(**changes)
    with pytest.raises(ValueError, match=r"keep\.new: got 'new/acc'"):
        keep().suite({})


def test_averages_are_weighted_means_and_a_share_of_one_changes_no_bit() -> None:
    torch.manual_seed(0)
    states = [{"w": torch.randn(3, 2), "n": torch.tensor(i)} for i in range(3)]
    made = average_states(states, [0.5, 0.3, 0.2])
    torch.testing.assert_close(made["w"], 0.5 * states[0]["w"] + 0.3 * states[1]["w"] + 0.2 * states[2]["w"])
    assert made["n"] == 2
    assert torch.equal(average_states(states, [0, 1, 0])["w"], states[1]["w"])
    torch.testing.assert_close(average_states(states)["w"], sum(s["w"] for s in states) / 3)
    with pytest.raises(CheckpointError, match="another architecture in model 1 than in model 0: v, w"):
        average_states([states[0], {"v": torch.zeros(1), "n": torch.tensor(0)}])


def test_a_greedy_soup_takes_what_does_not_lower_the_score() -> None:
    values = [3.0, 1.0, -8.0, 2.5]  # the best is 2.5; with 3 the mean is further from 2.1, with 1 it is nearer
    states = [{"w": torch.tensor([value])} for value in values]
    state, taken, best = greedy_soup(states, lambda some: -abs(float(some["w"]) - 2.1))
    assert taken == [3, 1]
    assert best == pytest.approx(-0.35, abs=1e-6)
    assert state["w"].item() == pytest.approx(1.75)
