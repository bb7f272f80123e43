"""Batches: cutting keeps samples together; needs merge to the smallest cover; samples and faults say where they are."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.core.batch import Batch, Records, merge_needs
from mmssl.core.sample import Fault, Origin

ORIGIN = Origin("train", "000001.tar", 3, 1536)
FAULT = Fault("00042", ORIGIN, "picture", "undecodable", "got 3 bytes", substitute="00043")


def batch(size: int = 5) -> Batch:
    return Batch(
        views={
            "picture": {"crop0": torch.arange(size * 6).view(size, 2, 3), "crop1": torch.arange(size)[:, None] * 10},
            "words": {"tokens0": torch.arange(size * 4).view(size, 4)},
        },
        index=torch.arange(100, 100 + size),
        keys=tuple(f"key{i}" for i in range(size)),
        present={"words": torch.arange(size) % 2 == 0},
        lengths={"words": torch.arange(size) + 1},
        faults=(FAULT,),
        records=Records(Records.text(record(i)) for i in range(size)),
        notes=tuple(("odd",) * (i % 2) for i in range(size)),
    )


def record(i: int) -> dict[str, Any]:
    """Sample i has a picture if i is not 2."""
    return {"views": {"picture": {"crop0": {"box": [i, 0.1 + i]}}} if i != 2 else {}, "more": i}


def test_rows_cut_everything_alike() -> None:
    whole, part = batch(), batch().rows(1, 3)
    assert len(part) == 2
    assert part.keys == ("key1", "key2")
    assert part.index.tolist() == [101, 102]
    assert torch.equal(part["picture"]["crop0"], whole["picture"]["crop0"][1:3])
    assert torch.equal(part["words"]["tokens0"], whole["words"]["tokens0"][1:3])
    assert part.present["words"].tolist() == [False, True]
    assert part.lengths["words"].tolist() == [2, 3]
    assert list(part.records) == [record(1), record(2)]
    assert part.notes == (("odd",), ())


def test_parameters_of_views_are_one_mapping_a_sample() -> None:
    drawn = batch(4).parameters("picture", "crop0")
    assert drawn == [{"box": [0, 0.1]}, {"box": [1, 1.1]}, None, {"box": [3, 3.1]}]
    assert batch(4).rows(1, 3).parameters("picture", "crop0") == drawn[1:3]
    assert batch(4).parameters("picture", "crop1") == [None] * 4


def test_records_travel_unread_and_come_back_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", lambda text: pytest.fail("a record was parsed"))
    sent = pickle.loads(pickle.dumps(batch())).rows(0, 4).to("cpu")
    monkeypatch.undo()
    assert sent.records == batch(4).records
    assert sent.records != batch(5).records
    assert list(sent.records) == [record(i) for i in range(4)]
    with pytest.raises(TypeError, match="ndarray is not JSON"):
        Records.text({"views": np.zeros(2)})


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (9, [5]), (1, [1] * 5)])
def test_chunks_are_the_batch_in_order(size: int, sizes: list[int]) -> None:
    whole, parts = batch(), list(batch().chunks(size))
    assert [len(part) for part in parts] == sizes
    assert sum((part.keys for part in parts), ()) == whole.keys
    for modality, views in whole.views.items():
        for name, x in views.items():
            assert torch.equal(torch.cat([part[modality][name] for part in parts]), x)
    assert torch.equal(torch.cat([part.present["words"] for part in parts]), whole.present["words"])


def test_faults_stay_with_their_rows() -> None:
    faults = (FAULT, *(dataclasses.replace(FAULT, row=row) for row in (0, 2, 3)))
    chunks = list(dataclasses.replace(batch(), faults=faults).chunks(2))
    assert [[fault.row for fault in chunk.faults] for chunk in chunks[:2]] == [[None, 0], [0, 1]]
    assert sum(len(chunk.faults) for chunk in chunks) == 4


def test_map_reaches_every_tensor_and_nothing_else() -> None:
    seen: list[torch.Size] = []
    mapped = batch().map(lambda x: (seen.append(x.shape), x + x)[1])  # type: ignore[func-returns-value]
    assert len(seen) == 6
    assert mapped.index.tolist() == [200, 202, 204, 206, 208]
    assert (mapped.keys, mapped.faults) == (batch().keys, (FAULT,))
    assert batch().index[0] == 100


def test_to_moves_every_tensor() -> None:
    moved = batch().to("meta")
    tensors = [x for views in moved.views.values() for x in views.values()]
    tensors += [moved.index, *moved.present.values(), *moved.lengths.values()]
    assert len(tensors) == 6
    assert all(x.device.type == "meta" for x in tensors)


def test_batch_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch().keys = ()  # type: ignore[misc]


def test_merge_needs_takes_the_maximum_and_leaves_its_arguments() -> None:
    first = {"picture": {"crop": 1, "order": 1}, "words": {"tokens": 1}}
    second = {"picture": {"crop": 2}, "sound": {"window": 1}}
    merged = merge_needs(first, second)
    assert merged == {"picture": {"crop": 2, "order": 1}, "words": {"tokens": 1}, "sound": {"window": 1}}
    assert merge_needs(second, first) == merged
    assert first == {"picture": {"crop": 1, "order": 1}, "words": {"tokens": 1}}
    assert merge_needs() == {}


def test_faults_say_where() -> None:
    assert str(ORIGIN) == "sample 3 at byte 1536 of 000001.tar"
    assert str(FAULT) == "undecodable 'picture' of key '00042' (sample 3 at byte 1536 of 000001.tar): got 3 bytes"
