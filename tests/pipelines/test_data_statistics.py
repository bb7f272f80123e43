"""Statistics of the shards of a run in its report: the right figures of training and test sets, and why there are none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from mmssl.curation import stats as statistics
from mmssl.data.modalities.image import ImageModality
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from pipelines.data_statistics import data_statistics
from tests.evaluation.world import colour_shards
from tests.pipelines.conftest import RECIPE, World


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


def test_their_time_is_bounded_and_spread_over_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = colour_shards(tmp_path / "train", 90), colour_shards(tmp_path / "test", 9)
    retrieval = {"kind": "retrieval", "shards": test, "pair": ["image", "text"]}
    values = RECIPE | {"output": str(tmp_path), "data": {"shards": train}, "evaluators": {"retrieval": retrieval}}
    recipe = validate_text(Recipe, json.dumps(values), "tiny.yaml")
    seconds = itertools.count(0, 10)  # each look at the clock takes ten seconds
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    read: list[int] = []
    real = statistics._Tally.add
    monkeypatch.setattr(
        statistics._Tally, "add", lambda tally, index, number: (read.append(number), real(tally, index, number))
    )
    part = data_statistics(recipe)
    monkeypatch.undo()
    training, of_test = (dict(grid.rows)["samples"] for grid in part.grids)
    assert training.startswith("90 in 2 shards of ")
    assert training.endswith("; 3 looked at")
    assert of_test.endswith("; 1 looked at")
    assert max(read[:3]) - min(read[:3]) > 30, "not the first ones"
    for count in (1, 2, 7, 200):
        assert sorted(statistics._spread(count)) == list(range(count))


def test_errors_of_any_kind_are_a_sentence_in_the_report_and_fail_no_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.copy_of_run(tmp_path / "tiny")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the decoder is broken")

    monkeypatch.setattr(ImageModality, "inspect", broken)
    assert world.pretrain(f"output={tmp_path}") == 0
    assert "RuntimeError: the decoder is broken" in (tmp_path / "tiny/report.html").read_text()
    monkeypatch.setattr("mmssl.reporting.run_report.write_report", broken)
    capfd.readouterr()
    assert world.pretrain(f"output={tmp_path}") == 0
    said = capfd.readouterr().err
    assert (
        f"finished; without a report, which `mmssl report {tmp_path / 'tiny'}` writes: RuntimeError: the decoder"
        in said
    )
