"""The report of a run: galleries of what was measured since, of each pair of modalities, and of shards that are still there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.recipe.load import start_of
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from mmssl.reporting import figures
from mmssl.reporting.run_report import measured_evaluators, report_run
from tests.evaluation.world import colour_shards
from tests.pipelines.conftest import RECIPE


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "chart_uri", lambda chart: "data:image/svg+xml;base64,")


def retrieval(shards: object, *pair: str) -> dict[str, Any]:
    return {"kind": "retrieval", "shards": shards, "pair": pair or ("image", "text"), "workers": 0}


def made(folder: Path, evaluators: dict[str, Any], **changes: Any) -> Recipe:
    """The recipe of an untrained run."""
    lines = {"text": RECIPE["modalities"]["text"] | {"captions": "lines"}}  # type: ignore[index, operator]
    values = RECIPE | {"modalities": RECIPE["modalities"] | lines, "output": str(folder)} | changes  # type: ignore[operator]
    values |= {"data": {"shards": ["gone"], "workers": 0}, "evaluators": evaluators}
    (folder / "tiny").mkdir()
    (folder / "tiny/metrics.jsonl").write_text("")
    return validate_text(Recipe, json.dumps(values), "tiny.yaml")


def written(recipe: Recipe, **options: Any) -> str:
    return report_run(recipe, model=start_of(recipe), **options).read_text()


def test_results_have_galleries_that_the_recipe_does_not_ask_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RetrievalConfig.model_validate_json(json.dumps(retrieval(colour_shards(tmp_path / "test", 9))))
    records = {
        "set": {"scores": {}, "evaluator": settings.model_dump(mode="json")},
        "old": {"scores": {}, "evaluator": {"kind": "retrieval", "colour": "red"}},
    }
    measured = measured_evaluators(records)
    assert measured == {"set": settings}
    assert "of old: this version cannot read its settings" in caplog.text
    html = written(made(tmp_path, {}), measured=measured)
    for words in (
        "<h2>Retrieval gallery</h2>",
        "set: image → text",
        "set: text → image",
        "set: text × image",
        "<h2>Embedding map</h2>",
    ):
        assert words in html, words


def test_shards_that_have_moved_cost_the_gallery_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    html = written(made(tmp_path, {"retrieval": retrieval([str(tmp_path / "moved")])}))
    assert "<h2>Retrieval gallery</h2>" not in html
    assert "<h2>Without a gallery</h2>" in html
    assert "<td>retrieval</td><td>no such shard" in html
    assert str(tmp_path / "moved") in html
    assert "no gallery of retrieval: " in caplog.text
    assert "<h2>Recipe</h2>" in html


def test_the_next_evaluator_of_a_pair_steps_in(tmp_path: Path) -> None:
    evaluators = {
        "moved": retrieval([str(tmp_path / "moved")], "text", "image"),
        "there": retrieval(colour_shards(tmp_path / "test", 9)),
    }
    html = written(made(tmp_path, evaluators))
    assert "there: image → text" in html
    assert "Without a gallery" not in html


def test_each_pair_of_modalities_has_galleries(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path / "test", 9)
    small: dict[str, Any] = {
        key: {**RECIPE[key], "small": RECIPE[key]["image"]}  # type: ignore[dict-item, index]
        for key in ("modalities", "encoders")
    }
    small["modalities"]["text"] = small["modalities"]["text"] | {"captions": "lines"}
    views = {"image": "crop", "small": "crop", "text": "tokens"}
    pairs = [["image", "text"], ["small", "text"]]
    objective = RECIPE["objective"] | {"pairs": pairs, "views": views}  # type: ignore[operator]
    during = {"during": retrieval(shards, "text", "image") | {"every": "1 epochs"}}
    evaluators = during | {f"{pair[0]}_set": retrieval(shards, *pair) for pair in pairs}
    html = written(made(tmp_path, evaluators, **small, objective=objective))
    for words in ("image_set: image → text", "image_set: text × image", "small_set: text → small"):
        assert words in html, words
    assert "during: image" not in html
    assert "during: text" not in html
    assert html.count('<div class="query">') == 2 * 2 * 3 * 2  # pairs, directions, sections, queries
    assert html.count('class="heat"') == 2
