"""Subgroups: values of metadata, n and intervals by group, the worst first; keys that are no categories are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Table
from mmssl.evaluation.statistics import wilson
from mmssl.evaluation.subgroups import group_table, sample_groups
from tests.evaluation.world import write_shard


def shard(path: Path, metadata: list[Any]) -> str:
    samples = [(f"s{i:03d}", {"json": json.dumps(one).encode(), "txt": b"x"}) for i, one in enumerate(metadata)]
    return str(write_shard(path, samples))


def test_groups_are_scored_by_sample_the_worst_first(tmp_path: Path) -> None:
    shards = [
        shard(tmp_path / "a.tar", [{"camera": {"name": "old"}}, {"camera": {"name": "new"}}]),
        shard(tmp_path / "b.tar", [{"camera": {"name": "new"}}, {"other": 1}]),
    ]
    groups = sample_groups(shards, "json.camera.name")
    assert groups == {("s000", 0): "old", ("s001", 0): "new", ("s000", 1): "new", ("s001", 1): "(none)"}
    samples = Table({"key": ["s000", "s001", "s000", "s001"], "acc1": [0, 1, 1, 1]}, ("acc1",))
    queries = Table({"key": ["s001", "s001"], "item": [0, 1], "R@1": [1, 0]}, ("R@1",))
    found = group_table({"samples": samples, "a_to_b": queries, "classes": Table({"class": ["x"]})}, groups)
    rows = list(zip(*found.columns.values(), strict=True))
    assert rows[0] == ("acc1", "old", 1, 0.0, *wilson(0, 1))
    assert rows[1] == ("acc1", "new", 2, 1.0, *wilson(2, 2))
    assert rows[3][:4] == ("a_to_b_R@1", "new", 2, 0.5), "both captions are of the first sample of that key"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("country", "wanted a key of the samples' .json, as in json.country"),
        ("json.nothing", "json.nothing has 0 values in 120 samples; wanted 1 to 100 categories"),
        ("json.width", r"json.width has 120 values in 120 samples, such as \['0', '1', '10'\]"),
    ],
)
def test_keys_without_categories_are_refused(tmp_path: Path, key: str, says: str) -> None:
    shards = [shard(tmp_path / "a.tar", [{"width": i} for i in range(120)])]
    with pytest.raises(DataError, match=says):
        sample_groups(shards, key)
