"""The figures that a log line shows: few, named, and chance in the units of the loss."""

from __future__ import annotations

import pytest
from torch import nn

from mmssl.core.objective import Headline, Objective
from mmssl.objectives.clip import ClipObjective
from mmssl.objectives.parts.pairs import Pair
from mmssl.objectives.weighted import WeightedObjective


def clip(*pairs: tuple[str, str, float]) -> ClipObjective:
    made = [Pair(a, b, temperature=0.07, weight=weight, loss="info_nce", bias=0.0) for a, b, weight in pairs]
    names = {name for a, b, _ in pairs for name in (a, b)}
    return ClipObjective(made, dict.fromkeys(names, "view"), {name: nn.Identity() for name in names})


def logged(a: str, b: str, chance: float, there: float, back: float) -> dict[str, float]:
    metrics = {"chance_loss": chance, f"{a}_to_{b}_accuracy": there, f"{b}_to_{a}_accuracy": back, "scale": 14.0}
    return {f"{clip((a, b, 1.0)).pairs[0].name}/{name}": value for name, value in metrics.items()}


class Blind(ClipObjective):
    """Does not know what guessing costs."""

    def headline(self, scalars: dict[str, float]) -> Headline:  # type: ignore[override]
        return Headline(figures={"zero loss": scalars["zero_loss"]})


def test_a_pair_shows_accuracy_both_ways_beside_chance() -> None:
    shown = clip(("image", "text", 0.5)).headline(logged("image", "text", 4.0, 0.25, 0.5))
    assert shown == Headline(2.0, {"image to text accuracy": 0.25, "text to image accuracy": 0.5})


def test_several_pairs_show_one_accuracy_each_and_the_chance_of_the_sum() -> None:
    objective = clip(("image", "text", 1.0), ("image", "audio", 0.5))
    shown = objective.headline(logged("image", "text", 4.0, 0.25, 0.5) | logged("image", "audio", 3.0, 0.5, 0.7))
    assert shown.chance == 5.5
    assert shown.figures == pytest.approx({"image, text accuracy": 0.375, "image, audio accuracy": 0.6})


def test_a_sum_shows_the_figures_of_its_parts() -> None:
    parts: dict[str, Objective] = {"a": clip(("image", "text", 1.0)), "b": clip(("video", "audio", 1.0))}
    first, second = logged("image", "text", 4.0, 0.25, 0.5), logged("video", "audio", 3.0, 0.5, 0.75)
    scalars = {f"a/{name}": value for name, value in first.items()}
    scalars |= {f"b/{name}": value for name, value in second.items()}
    shown = WeightedObjective(parts, {"a": 1.0, "b": 2.0}).headline(scalars)
    assert shown.chance == 10.0
    assert list(shown.figures) == [
        "a image to text accuracy", "a text to image accuracy", "b video to audio accuracy", "b audio to video accuracy"
    ]  # fmt: skip


def test_a_sum_without_a_common_chance_shows_the_loss_of_each_part() -> None:
    views = {"video": "view", "audio": "view"}
    blind = Blind(clip(("video", "audio", 1.0)).pairs, views, {name: nn.Identity() for name in views})
    scalars = {f"a/{name}": value for name, value in logged("image", "text", 4.0, 0.25, 0.5).items()}
    scalars |= {"b/zero_loss": 1.0, "loss/a/x": 1.5, "loss/b/x": 0.25, "loss/b/y": 0.5}
    objective = WeightedObjective({"a": clip(("image", "text", 1.0)), "b": blind}, {"a": 0.5, "b": 1.0})
    assert objective.headline(scalars) == Headline(
        None,
        {
            "a loss": 1.5,
            "a chance": 2.0,
            "a image to text accuracy": 0.25,
            "a text to image accuracy": 0.5,
            "b loss": 0.75,
            "b zero loss": 1.0,
        },
    )
