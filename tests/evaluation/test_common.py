"""From batches to items: unpacking, refusals by key, and a model that is left as it was."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.evaluation.common import (
    collect,
    collect_shards,
    digests,
    first_samples,
    inference,
    require_modalities,
    require_usable,
    unpack,
    warn_of_ties,
)
from mmssl.evaluation.retrieval import RetrievalConfig
from tests.evaluation.world import colour_sample, colour_shards, configured, modalities, write_shard

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
    views, owner = unpack(batch(3, 4), "words")
    assert views[:, 0].tolist() == [40, 50, 51]
    assert owner.tolist() == [4, 5, 5]
    assert unpack(batch(3, 4), "mark")[1].tolist() == [4, 6]
    without_five = replace(batch(3, 4), present={"words": torch.tensor([True, True, False, True])})
    assert unpack(without_five, "words")[1].tolist() == [4]


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
    found = digests(torch.tensor([[1, 2], [3, 4], [1, 2]]))
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample to measure on"):
        collect([], {"value": lambda x: x}, CPU, chunk=2)
    with pytest.raises(DataError, match="no sample has 'mark', of 1:"):
        collect([batch(1, 1)], {"mark": lambda x: x}, CPU, chunk=2)


def test_limits_stop_early() -> None:
    def batches():  # type: ignore[no-untyped-def]
        yield batch(0, 3)
        yield batch(3, 3)
        raise AssertionError("a batch after the limit was made")

    assert [part.index.tolist() for part in first_samples(batches(), 5)] == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("value", "says"), [(torch.nan, "not finite"), (torch.inf, "not finite"), (0.0, "no direction")]
)
def test_unusable_rows_are_refused_by_key(value: float, says: str) -> None:
    rows = torch.ones(4, 2)
    rows[2] = value
    with pytest.raises(NumericError, match=f"'third'.*{says}.*1 of 4"):
        require_usable(rows, torch.tensor([5, 6, 7, 8]), {7: "third"}, "the embedding", unit=True)


def test_zero_features_are_allowed_where_no_direction_is_needed() -> None:
    zeros, owner, keys = torch.zeros(1, 2), torch.tensor([0]), {0: "k"}
    require_usable(zeros, owner, keys, "the feature", unit=False)
    with pytest.raises(NumericError, match="no direction"):
        require_usable(zeros, owner, keys, "the feature", unit=True)


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[2].eval()  # a frozen part
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), inference(model):
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()


def test_unknown_modalities_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'picture'"):
        require_modalities(modalities(), ["pictures"])


def test_ties_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_ties("here", 0.005)
        assert not caplog.records
        warn_of_ties("here", 0.5)
    assert "here: 50.0 % of the queries tie" in caplog.text


@pytest.mark.parametrize("limit", [None, 4])
def test_shards_are_collected(tmp_path: Path, limit: int | None) -> None:
    shards = colour_shards(tmp_path, 7)
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], batch_size=3)
    encode = {"picture": lambda x: x.float().mean((2, 3)), "words": lambda x: x, "label": lambda x: x}
    data = collect_shards(config, modalities(), encode, CPU, shards=shards, limit=limit)
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

    def run(on_error: str):  # type: ignore[no-untyped-def]
        config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], on_error=on_error)
        return collect_shards(config, modalities(), encode, CPU, shards=shards, limit=None)

    with pytest.raises(DataError, match="sample001"):
        run("raise")
    data = run("skip")
    assert data.skipped == 1
    assert list(data.keys) == [0, 2]
