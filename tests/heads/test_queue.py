"""The queue: a ring of exactly the last rows, ages, neighbours, state."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from mmssl.heads.queue import Queue


def queue(length: int, pushed: int = 1, width: int = 3) -> Queue:
    torch.manual_seed(0)
    return Queue(length, width, pushed)


def rows(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 3, 3, 3), (5, 0, 5, 2, 7), (7, 7), (1,) * 20])
def test_it_holds_the_last_rows_whatever_the_sizes_of_pushes(sizes: tuple[int, ...]) -> None:
    ring = queue(7)
    expected = deque([(row, -1) for row in ring.rows.clone()], maxlen=7)
    for step, size in enumerate(sizes):
        pushed = rows(size, step)
        ring.push(pushed, step)
        expected.extend((row, step) for row in pushed)
        oldest_first = torch.roll(ring.rows, -int(ring.start), 0)
        assert torch.equal(oldest_first, torch.stack([row for row, _ in expected]))
        assert torch.roll(ring.steps, -int(ring.start), 0).tolist() == [at for _, at in expected]


def test_it_starts_with_random_unit_rows() -> None:
    ring = queue(500)
    torch.testing.assert_close(ring.rows.norm(dim=1), torch.ones(500))
    assert ring.rows.mean(0).abs().max() < 0.1
    assert torch.equal(ring.rows, queue(500).rows)


def test_age_is_the_mean_over_pushed_rows() -> None:
    ring = queue(6)
    assert ring.age(9).item() == 0
    ring.push(rows(2, 0), 3)
    ring.push(rows(1, 1), 6)
    assert ring.age(7).item() == pytest.approx((4 + 4 + 1) / 3)
    for step in (7, 8):
        ring.push(rows(3, step), step)
    assert ring.age(9).item() == 1.5


def test_nearest_is_by_dot_product_and_of_equal_ones_the_first() -> None:
    ring = queue(4)
    ring.push(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [-1, 0, 0]]), 0)
    found = ring.nearest(torch.tensor([[0.9, 0.1, 5.0], [0.1, 0.9, 0.0], [-3.0, 0.0, 0.0]]))
    assert torch.equal(found, ring.rows[[0, 1, 3]])


def test_neighbours_are_those_of_lightly() -> None:
    modules = pytest.importorskip("lightly.models.modules")
    bank = modules.NNMemoryBankModule(size=(30, 3))
    ring, x = queue(30), torch.nn.functional.normalize(rows(10, 1), dim=1)
    bank.bank = ring.rows.clone()
    assert torch.equal(ring.nearest(x), bank(x, update=False))


def test_state_is_in_the_checkpoint() -> None:
    ring, other = queue(5), Queue(5, 3, 1)
    ring.push(rows(3, 0), 8)
    assert not torch.equal(other.rows, ring.rows)
    other.load_state_dict(ring.state_dict())
    for one in (ring, other):
        one.push(rows(3, 1), 9)
    mine, loaded = dict(ring.named_buffers()), dict(other.named_buffers())
    assert all(torch.equal(x, mine[name]) for name, x in loaded.items())


def test_a_queue_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queue: got a length of 7, wanted at least 8.*batch_size smaller"):
        queue(7, pushed=8)
    queue(8, pushed=8)


def test_full_once_no_row_is_random() -> None:
    queue = Queue(5, 2, 2)
    full = []
    for step in range(4):
        full.append(queue.is_full())
        queue.push(torch.ones(2, 2), step)
    assert full == [False, False, False, True]
