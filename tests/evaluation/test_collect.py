"""From batches to the items of all processes, and shards that stay open between the runs of an evaluator."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.workers import Workers
from mmssl.evaluation import collect as module
from mmssl.evaluation.class_retrieval import ClassRetrievalConfig
from mmssl.evaluation.collect import KeptIndex, KeptShards, collect, row_hashes, unpack_items
from mmssl.evaluation.labelled.linear_probe import LinearProbeConfig
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.recipe.suite import read_as
from tests.evaluation.world import (
    NAMES,
    colour_sample,
    colour_shards,
    configured,
    knowing_model,
    modalities,
    write_shard,
)

CPU = torch.device("cpu")


def batch(start: int, n: int) -> Batch:
    """Sample i holds the value i, (i % 3) words, and a mark if i is even."""
    index = torch.arange(start, start + n)
    words = (10 * index[:, None] + torch.arange(3))[..., None].float()
    return Batch(
        views={
            "value": {"eval0": index[:, None].float()},
            "words": {"eval0": words},
            "mark": {"eval0": index},
        },
        index=index,
        keys=tuple(f"k{i}" for i in index.tolist()),
        present={"mark": index % 2 == 0},
        lengths={"words": index % 3},
    )


def test_items_are_unpacked() -> None:
    views, owner = unpack_items(batch(3, 4), "words")
    assert views[:, 0].tolist() == [40, 50, 51]
    assert owner.tolist() == [4, 5, 5]
    assert unpack_items(batch(3, 4), "mark")[1].tolist() == [4, 6]
    without_five = replace(batch(3, 4), present={"words": torch.tensor([True, True, False, True])})
    assert unpack_items(without_five, "words")[1].tolist() == [4]


def test_collect_keeps_order_keys_and_owners() -> None:
    seen: list[int] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return 2 * x

    data = collect(
        [batch(0, 4), batch(4, 3)], {"value": double, "words": lambda x: x, "mark": lambda x: x}, CPU, chunk=3
    )
    assert data["value"].rows[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert data["words"].owner.tolist() == [1, 2, 2, 4, 5, 5]
    assert data["mark"].rows.tolist() == [0, 2, 4, 6]
    assert data.keys == {i: f"k{i}" for i in range(7)}
    assert max(seen) <= 3


def test_equal_views_have_equal_digests() -> None:
    found = row_hashes(torch.tensor([[1, 2], [3, 4], [1, 2]]))
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample to evaluate on"):
        collect([], {"value": lambda x: x}, CPU, chunk=2)
    with pytest.raises(DataError, match="no sample has 'mark', of 1:"):
        collect([batch(1, 1)], {"mark": lambda x: x}, CPU, chunk=2)


@pytest.mark.parametrize("limit", [None, 4])
def test_shards_are_collected(tmp_path: Path, limit: int | None) -> None:
    shards = colour_shards(tmp_path, 7)
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], batch_size=3)
    encode = {"picture": lambda x: x.float().mean((2, 3)), "words": lambda x: x, "label": lambda x: x}
    data = KeptShards(config, modalities(), list(encode), shards, limit).collect(encode, CPU)
    n = limit or 7
    assert list(data.keys.values()) == [f"sample{i:03d}" for i in range(n)]
    assert data["picture"].owner.tolist() == list(range(n))
    assert data["words"].owner.tolist() == [i for i in range(n) for _ in range(1 + i % 3)]
    assert data["label"].owner.tolist() == [i for i in range(n) if i % 5 != 4]


def test_damaged_samples_end_it_or_are_counted(tmp_path: Path) -> None:
    key, fields = colour_sample(1)
    broken = (key, {**fields, "png": fields["png"][:40]})
    shards = [str(write_shard(tmp_path / "a.tar", [colour_sample(0), broken, colour_sample(2)]))]
    encode = {"picture": lambda x: x.float().mean((2, 3))}

    def kept(on_error: str) -> KeptShards:
        config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], on_error=on_error)
        return KeptShards(config, modalities(), ["picture"], shards, None)

    with pytest.raises(DataError, match="sample001"):
        kept("raise").collect(encode, CPU)
    tolerant = kept("skip")
    for _ in range(2):  # faults are those of one run, not of all so far
        data = tolerant.collect(encode, CPU)
        assert data.skipped == 1
        assert list(data.keys) == [0, 2]


KINDS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "retrieval": (RetrievalConfig, {"pair": ["picture", "words"]}, 1),
    "class_retrieval": (ClassRetrievalConfig, {"pair": ["picture", "words"]}, 1),
    "zero_shot": (
        ZeroShotConfig,
        {"modality": "picture", "prompts": "words", "classnames": list(NAMES), "templates": ["{}"]},
        1,
    ),
    "linear_probe": (LinearProbeConfig, {"modality": "picture", "validation": 0.3}, 2),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often an index was opened, and worker processes were started."""
    counts = {"indexes": 0, "loaders": 0}
    open_index, make_loader = ShardIndex.open, Workers.loader

    def count_index(*args: Any, **options: Any) -> ShardIndex:
        counts["indexes"] += 1
        return open_index(*args, **options)

    def count_loader(self: Workers, *args: Any, **options: Any) -> Any:
        counts["loaders"] += 1
        return make_loader(replace(self, start_method="fork"), *args, **options)

    monkeypatch.setattr(ShardIndex, "open", count_index)
    monkeypatch.setattr(Workers, "loader", count_loader)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_many_runs_open_shards_once_and_start_workers_once(kind: str, tmp_path: Path, opened: dict[str, int]) -> None:
    config, values, sets = KINDS[kind]
    shards = colour_shards(tmp_path, 24)
    more = {"train_shards": shards} if kind == "linear_probe" else {}
    before = set(multiprocessing.active_children())
    with configured(config, shards=shards, workers=1, batch_size=5, **values, **more).build(modalities()) as evaluator:
        scores = [dict(evaluator.evaluate(knowing_model())) for _ in range(4)]
        assert len(set(multiprocessing.active_children()) - before) == sets
    assert all(one == scores[0] for one in scores)
    assert opened == {"indexes": sets, "loaders": sets}
    assert set(multiprocessing.active_children()) <= before
    assert dict(evaluator.evaluate(knowing_model())) == scores[0], "what was closed opens again"
    assert opened == {"indexes": 2 * sets, "loaders": 2 * sets}
    evaluator.close()


@pytest.mark.parametrize(
    ("workers", "samples", "wanted"),
    [(None, 100, 0), (0, 100, 0), (4, 100, 4), (4, 12, 2), (4, 9, 2), (4, 4, 0), (4, 0, 0)],
)
def test_there_are_fewer_workers_than_batches(workers: int | None, samples: int, wanted: int) -> None:
    config = configured(RetrievalConfig, shards=["x"], pair=["picture", "words"], workers=workers, batch_size=4)
    assert config.workers_for(samples) == wanted


def test_workers_are_those_of_training_unless_there_are_others() -> None:
    data = DataConfig(shards=("x",), workers=5)
    config = configured(RetrievalConfig, shards=["x"], pair=["picture", "words"])
    assert read_as(config, data).workers == 5
    assert read_as(config.model_copy(update={"workers": 0}), data).workers == 0


def test_files_stay_flat_over_runs(tmp_path: Path, opened: dict[str, int]) -> None:
    shards = colour_shards(tmp_path, 12)
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], workers=2, batch_size=4)
    with config.build(modalities()) as evaluator:
        files = []
        for _ in range(6):
            list(evaluator.evaluate(knowing_model()))
            files.append(len(os.listdir("/proc/self/fd")))
    assert files[-1] <= files[1]


def test_memory_stays_flat_over_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # what is logged is kept until the test ends
    shards = colour_shards(tmp_path, 12)
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], resamples=100)
    model, objects = knowing_model(), []
    with config.build(modalities()) as evaluator:
        for run in range(12):
            list(evaluator.evaluate(model))
            if run % 4 == 3:  # at first, what is made once is made
                gc.collect()
                objects.append(len(gc.get_objects()))
    assert min(after - before for before, after in pairwise(objects)) <= 0, objects


def test_a_run_that_breaks_off_ends_its_workers_and_the_next_one_starts_anew(
    tmp_path: Path, opened: dict[str, int]
) -> None:
    shards = colour_shards(tmp_path, 12)
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], workers=1, batch_size=2)
    kept = KeptShards(config, modalities(), ["picture"], shards, None)
    before = set(multiprocessing.active_children())

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.collect({"picture": fail}, CPU)
    assert set(multiprocessing.active_children()) <= before
    assert len(kept.collect({"picture": lambda x: x.float().mean((2, 3))}, CPU).keys) == 12
    kept.close()


def test_shards_that_change_are_opened_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shard(tmp_path / "0.tar", [colour_sample(i) for i in range(3)])
    config = configured(RetrievalConfig, shards=[str(tmp_path)], pair=["picture", "words"])
    kept = KeptShards(config, modalities(), ["picture"], config.shards, None)
    encode = {"picture": lambda x: x.float().mean((2, 3))}
    for _ in range(2):
        assert len(kept.collect(encode, CPU).keys) == 3
    assert not caplog.text
    write_shard(path, [colour_sample(i) for i in range(3, 8)])
    with caplog.at_level(logging.WARNING):
        assert list(kept.collect(encode, CPU).keys.values()) == [f"sample{i:03d}" for i in range(3, 8)]
    assert "have changed since the last evaluation: earlier scores are of other samples" in caplog.text
    write_shard(tmp_path / "1.tar", [colour_sample(9)])
    assert len(kept.collect(encode, CPU).keys) == 6


def test_time_of_change_tells_shards_of_one_size_apart(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", [colour_sample(0)])
    kept = KeptIndex([str(path)], modalities())
    first = kept.open()
    assert kept.open() is first
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert kept.open() is not first


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluator_opens_its_shards_before_it_runs(tmp_path: Path, kind: str) -> None:
    config, values, _ = KINDS[kind]
    shards = colour_shards(tmp_path, 6)
    other = [
        str(write_shard(tmp_path / "other.tar", [("0", {"input.png": b"x", "label.cls": b"1", "words.txt": b"x"})]))
    ]

    def build(shards: list[str], **more: list[str]) -> Evaluator:
        built: Evaluator = configured(config, shards=shards, **values, **more).build(modalities())
        return built

    trains = "train_shards" in config.model_fields
    for bad, message in ([str(tmp_path / "nowhere")], "no such shard"), (other, r"no sample has .*extensions"):
        for evaluator in [build(bad, train_shards=shards), build(shards, train_shards=bad)] if trains else [build(bad)]:
            with pytest.raises(DataError, match=message):
                evaluator.open()
    with build(shards, **({"train_shards": shards} if trains else {})) as evaluator:
        evaluator.open()


def test_views_are_hashed_where_somebody_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr(module, "row_hashes", lambda views: hashed.append(len(views)) or row_hashes(views))
    shards = colour_shards(tmp_path, 24)
    for kind, (config, values, _) in KINDS.items():
        more = {"train_shards": shards} if kind == "linear_probe" else {}
        list(configured(config, shards=shards, **values, **more).build(modalities()).evaluate(knowing_model()))
        assert bool(hashed) == (kind == "retrieval")
        hashed.clear()
    plain = collect([batch(0, 2)], {"value": lambda x: x}, CPU, chunk=2)["value"]
    with pytest.raises(ValueError, match="collected without hashes"):
        _ = plain.digest
