"""Captions in the tables of retrieval: read when a file is written, as they were scored, and of bounded length."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Table
from mmssl.data.samples import load
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation import texts as module
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.evaluation.texts import LENGTH, sample_texts
from mmssl.reporting import results
from tests.evaluation.world import colour_sample, configured, knowing_model, modalities, write_shard

LONG = "long " * 300


class Shift(nn.Module):
    """Moves embeddings a little, so that none is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([0.1, 0.2, 0.05])


def shards(folder: Path) -> list[str]:
    """Four samples with 1, 2, 3 and 1 captions; the third has no picture, and the last caption is long."""
    samples = [colour_sample(number, 1 + number % 3) for number in range(4)]
    del samples[2][1]["png"]
    samples[3][1]["txt"] = LONG.encode()
    return [str(write_shard(folder / "0.tar", samples))]


def tables(folder: Path, **settings: Any) -> dict[str, Table]:
    config = configured(RetrievalConfig, shards=shards(folder), pair=["picture", "words"], resamples=100, **settings)
    with config.build(modalities()) as evaluator:
        model = knowing_model()
        model.heads["words"] = Shift()
        dict(evaluator.evaluate(model))
        return dict(evaluator.tables)


def test_captions_are_read_where_a_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(module, "load", lambda index, number, *more: read.append(number) or load(index, number, *more))
    found = tables(tmp_path)
    assert not read, "nobody asked"
    captions, pictures = found["words_to_picture"], found["picture_to_words"]
    assert list(captions.columns["key"]) == ["sample000", "sample001", "sample001", "sample003"]
    assert "text" not in captions.columns
    assert captions.texts is not None
    assert captions.texts() == {"text": ["a black picture", "a red picture", "red", LONG[: LENGTH - 1] + "…"]}
    assert read == [0, 1, 3], "each sample once"
    assert list(pictures.columns["key"]) == ["sample000", "sample001", "sample003"]
    assert pictures.texts is not None
    right = pictures.texts()
    assert right.keys() == {"right_texts"}
    assert right["right_texts"][:2] == ["a black picture", "a red picture\nred"]
    assert len(right["right_texts"][2]) == LENGTH


def test_captions_are_as_long_as_those_that_were_scored(tmp_path: Path) -> None:
    read = tables(tmp_path, lengths={"words": 0.67})["words_to_picture"].texts
    assert read is not None
    assert read()["text"][:3] == ["a black", "a red", "red"]


def test_files_have_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {
        "scores": torch.tensor([[0.5, 1.0], [0.25, 0.0]]),
        "labels": torch.tensor([[True, False], [False, False]]),
    }
    table = Table({"key": ["a", "b"]}, vectors=vectors, texts=lambda: {"text": ["one\nline", "two"]})
    spec = importlib.util.find_spec
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else spec(name))
    path = results.write_table(tmp_path / "rows", table)
    with path.open(newline="") as file:
        assert [*csv.reader(file)] == [
            ["key", "text", "scores", "labels"],
            ["a", "one\nline", "[0.5, 1.0]", "[true, false]"],
            ["b", "two", "[0.25, 0.0]", "[false, false]"],
        ]
    monkeypatch.undo()
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    found = parquet.read_table(results.write_table(tmp_path / "rows", table))
    assert str(found.schema.field("scores").type.value_type) == "float"
    assert found.to_pylist() == [
        {"key": "a", "text": "one\nline", "scores": [0.5, 1.0], "labels": [True, False]},
        {"key": "b", "text": "two", "scores": [0.25, 0.0], "labels": [False, False]},
    ]


def test_a_sample_that_cannot_be_read_any_more_is_told(tmp_path: Path) -> None:
    index = ShardIndex.open([str(write_shard(tmp_path / "0.tar", [("a", {"png": b"x"})]))])
    with pytest.raises(DataError, match="it could be read when it was evaluated"):
        sample_texts(index, "words", modalities()["words"], [0])
