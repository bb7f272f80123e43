"""Shuffled passes: every sample once an epoch, in another order, alike for any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core import distributed
from mmssl.core.errors import DataError
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.passes import ShuffledPasses
from tests.evaluation.world import colour_shards, modalities

NUMBERS = [0, 2, 3, 5, 7, 8, 11]


def passes(shards: list[str], batch_size: int, workers: int = 0) -> ShuffledPasses:
    needs = {"picture": {"crop": 1}}
    return ShuffledPasses(ShardIndex.open(shards), modalities(), needs, NUMBERS, batch_size, workers, seed=0)


def test_every_sample_comes_once_an_epoch_and_sizes_are_even(tmp_path: Path) -> None:
    stream = passes(colour_shards(tmp_path, 12), 3)
    epochs = [[batch.index.tolist() for batch in stream.epoch(number)] for number in (0, 1, 0)]
    for batches in epochs:
        assert sorted(map(len, batches)) == [2, 2, 3]
        assert len(batches) == len(stream)
        assert sorted(number for batch in batches for number in batch) == NUMBERS
    assert epochs[0] == epochs[2] != epochs[1]


def test_processes_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = colour_shards(tmp_path, 12)
    alone = list(passes(shards, 4).epoch(3))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(passes(shards, 4).epoch(3)))
    for whole, first, second in zip(alone, *shares, strict=True):
        assert whole.index.tolist() == [*first.index.tolist(), *second.index.tolist()]
        assert whole["picture"]["crop0"][: len(first)].equal(first["picture"]["crop0"])


def test_too_few_samples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    with pytest.raises(DataError, match="got 7 samples to train on with 8 processes"):
        passes(colour_shards(tmp_path, 12), 3)
