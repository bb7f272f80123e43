from __future__ import annotations

from collections import Counter

import pytest

from mmssl.data.order import Order


def batches(order: Order, first: int, last: int) -> list[list[tuple[int, int]]]:
    return [order.rows(step, 0, order.batch_size) for step in range(first, last)]


@pytest.mark.parametrize(("samples", "size"), [(23, 4), (24, 4), (40, 16), (17, 8), (10, 7), (5, 5), (9, 1)])
def test_every_sample_once_in_every_epoch(samples: int, size: int) -> None:
    order = Order(samples, size, seed=3, digest="d")
    rows = [row for batch in batches(order, 0, samples * 4) for row in batch]  # 4 * size epochs
    seen = Counter(rows)
    assert set(seen.values()) == {1}
    assert seen.keys() == {(epoch, sample) for epoch in range(4 * size) for sample in range(samples)}
    assert [epoch for epoch, _ in rows] == sorted(epoch for epoch, _ in rows)


@pytest.mark.parametrize(("samples", "size"), [(23, 4), (40, 16), (17, 8), (33, 16), (100, 50)])
def test_no_batch_holds_a_sample_twice(samples: int, size: int) -> None:
    for seed in range(20):
        for batch in batches(Order(samples, size, seed, "d"), 0, 60):
            assert len({sample for _, sample in batch}) == size


def test_any_place_can_be_reached_at_once() -> None:
    through = batches(Order(23, 4, 3, "d"), 0, 40)
    for step in reversed(range(40)):
        assert Order(23, 4, 3, "d").rows(step, 0, 4) == through[step]
        assert Order(23, 4, 3, "d").rows(step, 1, 3) == through[step][1:3]


def test_order_depends_on_seed_epoch_and_data() -> None:
    orders = [
        Order(50, 5, seed, digest).epoch(epoch).tolist() for seed in (0, 1) for digest in "ab" for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 8


def test_every_sample_is_as_likely_anywhere() -> None:
    counts = Counter(Order(8, 4, seed, "d").epoch(epoch)[0] for seed in range(800) for epoch in range(2))
    assert min(counts.values()) > 130  # 200 expected of each of 8, standard deviation 13
    assert max(counts.values()) < 270


def test_batches_larger_than_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="batches of 6 from 5"):
        Order(5, 6, 0, "d")
