"""From shards to measures of a representation: views, counts, and one result on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmssl.core.errors import NumericError
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.geometry import alignment, feature_spread, lidar, rankme, uniformity
from mmssl.evaluation.representation import RepresentationConfig, representation_scores
from tests.distributed.processes import Processes
from tests.evaluation import world
from tests.evaluation.world import collected, colour_shards, configured, items, knowing_model

ENDS = ("", "_ci95_low", "_ci95_high")


def modalities() -> dict[str, Modality]:
    crops = {
        "crop": {"kind": "resized_crop", "scale": [0.2, 1.0]},
        "patch": {"kind": "resized_crop", "scale": [0.1, 0.2]},
    }
    return world.modalities() | {"picture": configured(ImageConfig, size=8, views=crops).build("picture")}


def config(**values: Any) -> RepresentationConfig:
    return configured(RepresentationConfig, **{"shards": ["x"], "modality": "picture", "batch_size": 3, **values})


def measure(shards: list[str], **values: Any) -> dict[str, Any]:
    with config(shards=shards, **values).build(modalities()) as evaluator:
        return dict(evaluator.evaluate(knowing_model()))


def test_colours_fill_their_three_dimensions(tmp_path: Path) -> None:
    scores = measure(colour_shards(tmp_path, 24), max_samples=16)
    assert (scores["dimensions"], scores["n"], scores["n_excluded"], scores["n_skipped"]) == (3, 16, 0, 0)
    assert scores["rankme"] == pytest.approx(3, abs=0.1)
    assert scores["effective_rank"] == pytest.approx(3, abs=0.1)
    assert scores["spread"] == pytest.approx(1, abs=0.1)
    assert scores["uniformity"] < -2
    assert "alignment" not in scores
    assert "lidar" not in scores


def test_views_of_one_colour_agree_and_views_of_several_kinds_count(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path, 16)
    one = measure(shards, views={"crop": 2})
    assert one["alignment"] == pytest.approx(0, abs=1e-3)
    assert 1 < one["lidar"] <= 3.01
    assert measure(shards, views={"crop": 2}) == one, "random views are the same in every pass"
    assert measure(shards, views={"crop": 1, "patch": 2})["alignment"] != one["alignment"]


def test_scores_are_those_of_the_measures() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, first, second = (torch.randn(30, 4, generator=generator) for _ in range(3))
    data = collected(32, m=items(rows), **{"m/crop0": items(first), "m/crop1": items(second)})
    scores = representation_scores(data, "m", ["m/crop0", "m/crop1"])
    views = torch.stack([first, second], 1)
    assert scores["rankme"] == rankme(rows)
    assert tuple(scores[f"uniformity{end}"] for end in ENDS) == uniformity(rows)
    assert tuple(scores[f"spread{end}"] for end in ENDS) == feature_spread(rows)
    assert tuple(scores[f"alignment{end}"] for end in ENDS) == alignment(views)
    assert scores["lidar"] == lidar(views)
    assert scores["n_excluded"] == 2


def test_a_view_that_is_not_finite_is_refused() -> None:
    data = collected(3, m=items(torch.ones(3, 2)), **{"m/crop0": items(torch.full((3, 2), torch.nan))})
    with pytest.raises(NumericError, match="'m/crop0' of key 'key0'"):
        representation_scores(data, "m", ["m/crop0"])


@pytest.mark.parametrize("views", [{"crop": 1}, {"eval": 2}, {"crop": 0}])
def test_views_that_cannot_be_compared_are_refused(views: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"views"):
        config(views=views)


def test_views_that_the_modality_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no view 'crops'.*did you mean"):
        config(views={"crops": 2}).build(modalities())


def test_two_processes_see_the_views_of_one(two_processes: Processes, tmp_path: Path) -> None:
    shards = colour_shards(tmp_path, 7)
    first, second = two_processes.run(views_of, [(shards,), (shards,)])
    assert first == second
    assert first == pytest.approx(views_of(shards), abs=1e-6)


def views_of(shards: list[str]) -> dict[str, Any]:
    return measure(shards, views={"crop": 2})
