"""Statistics of the shards of a run in its report: the right figures of training and test sets, and why there are none."""

from __future__ import annotations

import json
from pathlib import Path

from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from pipelines.data_statistics import data_statistics
from tests.evaluation.world import colour_shards
from tests.pipelines.conftest import RECIPE


def test_training_and_test_shards_are_described(tmp_path: Path) -> None:
    train, test = colour_shards(tmp_path / "train", 9), colour_shards(tmp_path / "test", 3)
    (tmp_path / "train/dataset_type.txt").write_text("retrieval")  # each line of a text is a caption
    retrieval = {"kind": "retrieval", "shards": test, "pair": ["image", "text"]}
    evaluators = {
        "retrieval": retrieval,
        "again": retrieval,
        "moved": retrieval | {"shards": [str(tmp_path / "moved")]},
        "unnamed": {"kind": "zero_shot", "shards": test, "modality": "image", "prompts": "text", "classnames": "gone"},
    }
    values = RECIPE | {"output": str(tmp_path), "data": {"shards": train}, "evaluators": evaluators}
    recipe = validate_text(Recipe, json.dumps(values), "tiny.yaml")
    url = "https://user:word@host/0.tar?key=1"
    far = RetrievalConfig.model_validate_json(json.dumps(retrieval | {"shards": [url]}))
    part = data_statistics(recipe, {"far": far})
    rows = {grid.name.partition(":")[0]: dict(grid.rows) for grid in part.grids}
    assert [grid.name for grid in part.grids] == [
        f"training: {' '.join(train)}",
        f"retrieval, again: {' '.join(test)}",
        f"moved: {tmp_path / 'moved'}",
        "far: https://host/0.tar",
    ]
    training = rows["training"]
    size = sum(Path(path).stat().st_size for path in train)
    assert training["samples"] == f"9 in 2 shards of {size:,} bytes; 9 looked at"
    assert training[".cls"] == "in 8, 1 bytes each"
    assert training["image width"] == "8 each"
    # Sample i has 1 + i % 3 captions, of 3, 1 and 2 words.
    assert training["text words"].startswith("mean 2.17, median 2.5, ")
    assert training["text several captions"] == "6"
    assert training["label class"] == "0: 2, 1: 1, 2: 1, 3: 1, 5: 1, 6: 1, 7: 1"
    assert rows["retrieval, again"]["samples"].startswith("3 in 2 shards of ")
    assert "label class" not in rows["retrieval, again"]
    assert rows["moved"]["not measured"].startswith("no such shard")
    assert rows["far"] == {"not measured": "they are remote; `mmssl shards stats` reads them"}


def test_sources_have_figures_of_their_own(tmp_path: Path) -> None:
    sources = {name: {"shards": colour_shards(tmp_path / name, count)} for name, count in (("a", 3), ("b", 6))}
    values = RECIPE | {"output": str(tmp_path), "data": {"sources": sources}}
    part = data_statistics(validate_text(Recipe, json.dumps(values), "tiny.yaml"))
    found = {grid.name.partition(":")[0]: dict(grid.rows)["samples"][:16] for grid in part.grids}
    assert found == {"training, source a": "3 in 2 shards of", "training, source b": "6 in 2 shards of"}
