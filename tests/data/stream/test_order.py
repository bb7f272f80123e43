from __future__ import annotations

from collections import Counter

import pytest

from mmssl.data.shards.table import slice_starts
from mmssl.data.stream.order import BlockOrder, GlobalOrder, Ticket


def batches(order: GlobalOrder, first: int, last: int) -> list[list[Ticket]]:
    return [order.draws(0, step * order.most, (step + 1) * order.most) for step in range(first, last)]


@pytest.mark.parametrize(("samples", "size"), [(23, 4), (24, 4), (40, 16), (17, 8), (10, 7), (5, 5), (9, 1)])
def test_every_sample_once_in_every_epoch(samples: int, size: int) -> None:
    order = GlobalOrder(samples, size, seed=3, digest="d")
    rows = [row for batch in batches(order, 0, samples * 4) for row in batch]  # 4 * size epochs
    seen = Counter(rows)
    assert set(seen.values()) == {1}
    assert seen.keys() == {(epoch, sample) for epoch in range(4 * size) for sample in range(samples)}
    assert [epoch for epoch, _ in rows] == sorted(epoch for epoch, _ in rows)


@pytest.mark.parametrize(("samples", "size"), [(23, 4), (40, 16), (17, 8), (33, 16), (100, 50)])
def test_no_batch_holds_a_sample_twice(samples: int, size: int) -> None:
    for seed in range(20):
        for batch in batches(GlobalOrder(samples, size, seed, "d"), 0, 60):
            assert len({sample for _, sample in batch}) == size


def test_any_place_can_be_reached_at_once() -> None:
    through = batches(GlobalOrder(23, 4, 3, "d"), 0, 40)
    for step in reversed(range(40)):
        assert GlobalOrder(23, 4, 3, "d").draws(0, 4 * step, 4 * step + 4) == through[step]
        assert GlobalOrder(23, 4, 3, "d").draws(0, 4 * step + 1, 4 * step + 3) == through[step][1:3]


def test_order_depends_on_seed_epoch_and_data() -> None:
    orders = [
        GlobalOrder(50, 5, seed, digest).epoch(epoch).tolist() for seed in (0, 1) for digest in "ab" for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 8


def test_every_sample_is_as_likely_anywhere() -> None:
    counts = Counter(GlobalOrder(8, 4, seed, "d").epoch(epoch)[0] for seed in range(800) for epoch in range(2))
    assert min(counts.values()) > 130  # 200 expected of each of 8, standard deviation 13
    assert max(counts.values()) < 270


SHARDS = [50, 1, 77, 20, 64, 33]


@pytest.mark.parametrize("lanes", [1, 4, 7])
def test_blocks_have_every_sample_once_in_every_epoch(lanes: int) -> None:
    order = BlockOrder(SHARDS, lanes, 3, "d", size=8, mixed=3)
    for epoch in range(3):
        seen: list[Ticket] = []
        for lane in range(lanes):
            size = order.cuts[lane + 1] - order.cuts[lane]
            assert size in (sum(SHARDS) // lanes, sum(SHARDS) // lanes + 1)
            seen += order.draws(lane, epoch * size, (epoch + 1) * size)
        assert sorted(seen) == [(epoch, number) for number in range(sum(SHARDS))]


def test_any_place_in_blocks_can_be_reached_at_once() -> None:
    through = BlockOrder(SHARDS, 4, 3, "d", size=8, mixed=3).draws(2, 0, 300)
    for place in (299, 250, 61, 62, 0, 130):
        assert BlockOrder(SHARDS, 4, 3, "d", size=8, mixed=3).draws(2, place, place + 1) == through[place : place + 1]
    assert BlockOrder(SHARDS, 4, 4, "d", size=8, mixed=3).draws(2, 0, 50) != through[:50]


def test_blocks_draw_from_few_slices_at_a_time_and_mix_them() -> None:
    order = BlockOrder([1000] * 20, 4, 0, "d", size=50, mixed=4)
    for window in range(3):
        numbers = [number for _, number in order.draws(1, 200 * window, 200 * (window + 1))]
        slices = {number // 50 for number in numbers}
        assert 4 <= len(slices) <= 6  # slices that a lane's border or a window's border cuts count for both
        assert len({number // 1000 for number in numbers}) >= 3
        assert len({number // 50 for number in numbers[:40]}) >= 4
        assert numbers != sorted(numbers)


def test_slices_come_in_another_order_in_every_epoch() -> None:
    """One sample a slice and one slice a window, so that only the order of slices is drawn."""
    orders = {tuple(drawn(BlockOrder([6, 6], 1, seed, digest, size=1, mixed=1))[epoch]) for seed, digest, epoch in RUNS}
    assert len(orders) == len(RUNS)


def test_windows_are_mixed_anew_in_every_epoch_window_and_lane() -> None:
    """One slice a window, so that only the order within the slice is drawn, wherever the slice stands."""
    orders = []
    for seed, digest, epoch in RUNS:
        order = BlockOrder([12] * 4, 2, seed, digest, size=12, mixed=1)
        lanes = [drawn(order, lane)[epoch] for lane in (0, 1)]
        orders += [tuple(n % 12 for n in lane[start : start + 12]) for lane in lanes for start in (0, 12)]
    assert len(set(orders)) == len(orders) == 4 * len(RUNS)


def drawn(order: BlockOrder, lane: int = 0, epochs: int = 3) -> list[list[int]]:
    """Sample numbers of a lane by epoch."""
    size = order.cuts[lane + 1] - order.cuts[lane]
    return [[number for _, number in order.draws(lane, e * size, (e + 1) * size)] for e in range(epochs)]


RUNS = [(seed, digest, epoch) for seed in (0, 1) for digest in "ab" for epoch in range(3)]


def test_slices_are_even_and_within_shards() -> None:
    starts = slice_starts([130, 10, 64], 64)
    assert starts.tolist() == [0, 65, 130, 140]


def test_more_lanes_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="6 lanes for 5 samples"):
        BlockOrder([5], 6, 0, "d")
