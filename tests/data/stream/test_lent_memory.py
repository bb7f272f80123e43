"""Batches of workers are lent: they lie in memory that comes round again, and readers own copies."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.data.stream import collate as shared
from mmssl.data.stream.collate import Ring, copy_from_shared


def test_slots_come_round_and_no_sooner() -> None:
    memory = Ring(2)
    seen = []
    for number in range(5):
        memory.advance()
        small, large = memory.empty((2, 3), torch.uint8).fill_(number), memory.empty((4,), torch.int64).fill_(number)
        seen.append((small, large))
        assert (small.shape, small.dtype, large.shape) == ((2, 3), torch.uint8, (4,))
        if number:
            assert (seen[-2][0] == number - 1).all()  # the one before is still whole
            assert (seen[-2][1] == number - 1).all()
    assert [x.data_ptr() for x, _ in seen[:2]] == [x.data_ptr() for x, _ in seen[2:4]]
    assert len({x.data_ptr() for pair in seen for x in pair}) == 4


def test_a_slot_grows_with_its_batch() -> None:
    memory = Ring(1)
    sizes = []
    for rows in (4, 2, 9, 0):
        memory.advance()
        x = memory.empty((rows, 5), torch.int64)
        assert x.shape == (rows, 5)
        assert x.is_shared()
        sizes.append(x.untyped_storage().nbytes())
    assert sizes == [160, 160, 360, 360]
    with pytest.raises(ValueError, match="at least 1"):
        Ring(0)


def test_small_tensors_are_not_in_shared_memory() -> None:
    memory = Ring(1, least=16)
    small, large = memory.empty((3,), torch.float32), memory.empty((4,), torch.float32)
    assert not small.is_shared()
    assert large.is_shared()


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor(2.5),
        torch.zeros(0, 4, dtype=torch.bool),
        torch.ones(3, dtype=torch.bfloat16),
        torch.arange(100)[3:5],
    ],
)
def test_tensors_arrive_as_they_were_sent(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", dict(ForkingPickler._extra_reducers))  # type: ignore[attr-defined]
    monkeypatch.setattr(shared, "_rings", [])
    shared.start_ring(1)
    sent = bytes(ForkingPickler.dumps(x))
    got = ForkingPickler.loads(sent)
    assert got.dtype == x.dtype
    assert torch.equal(got, x)
    assert got.shape == x.shape
    assert len(sent) < 1000  # of the view, not of the memory behind it


def test_what_is_owned_does_not_change_with_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_rings", [])
    assert shared.ring() is None
    shared.start_ring(1)
    memory = shared.ring()
    assert memory is not None
    memory.advance()
    x = memory.empty((2, 128, 128, 3), torch.uint8).fill_(7).permute(0, 3, 1, 2)
    plain = torch.arange(2)
    mine = copy_from_shared(Batch({"m": {"x": x}}, plain))
    x.fill_(9)
    assert (mine["m"]["x"] == 7).all()
    assert mine["m"]["x"].stride() == x.stride()
    assert mine.index is plain  # nothing to copy
