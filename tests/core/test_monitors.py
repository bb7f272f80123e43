"""Monitors of latents: known values, absent samples, and the global batch on several processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.core.monitors import deviation, mean_norm, monitor, spread
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import GOLDEN, golden_rows, unit_rows


def test_spread_is_the_golden_value() -> None:
    """Lightly divides by n - 1, and leaves sqrt(D) to the reader."""
    unbiased = spread(golden_rows()[0]).item() * (8 / 7) ** 0.5 / 16**0.5
    assert unbiased == pytest.approx(GOLDEN["std_l2norm_collapse"], rel=1e-12)


def test_spread_is_one_on_the_sphere_and_zero_at_collapse() -> None:
    a, b = unit_rows(4000, 16)
    assert spread(a).item() == pytest.approx(1, rel=0.01)
    assert spread(5 * a).item() == pytest.approx(spread(a).item())
    assert spread(torch.ones(8, 16)).item() == pytest.approx(0, abs=1e-7)
    assert 0.05 < spread(1 + 0.1 * b * 16**0.5).item() < 0.15
    assert spread(torch.tensor([[1.0], [-1.0]])).item() == 1


def test_a_small_spread_is_not_lost_in_float32() -> None:
    point, noise = unit_rows(500, 16)
    near = (point[:1] + 1e-5 * noise).float()
    assert spread(near).item() == pytest.approx(spread(near.double()).item(), rel=1e-3)
    assert spread(near).item() == pytest.approx(1e-5, rel=0.2)


def test_absent_samples_are_left_out() -> None:
    a, _ = unit_rows(20, 5)
    with_absent = torch.cat([a[:7], torch.zeros(4, 5), a[7:]])
    assert spread(with_absent).item() == pytest.approx(spread(a).item(), rel=1e-12)
    assert mean_norm(3 * with_absent).item() == pytest.approx(3)
    assert spread(torch.zeros(4, 5)).item() == mean_norm(torch.zeros(4, 5)).item() == 0


def test_deviation_is_that_of_each_feature() -> None:
    x = 3 * unit_rows(20, 5)[0] + 100
    assert deviation(x).item() == pytest.approx(x.std(0, correction=0).mean().item(), rel=1e-9)
    assert deviation(torch.ones(8, 5)).item() == deviation(torch.ones(0, 5)).item() == 0


def test_names_are_those_of_the_log() -> None:
    a, b = unit_rows(20, 5, dtype=torch.float32)
    found = monitor({"0": 2 * a, "other": b}, {"image": "0"})
    assert found.keys() == {"spread/image", "norm/image"}
    assert found["norm/image"].item() == pytest.approx(2)
    assert found["spread/image"].item() == pytest.approx(spread(a).item())
    assert monitor({"0": a}, {}) == {}


def share(rows: int) -> dict[str, Tensor]:
    """This process' rows, of which the first process has two fewer."""
    rank = torch.distributed.get_rank()
    everything = 3 * unit_rows(WORLD * rows, 5)[0]
    mine = everything[: rows - 2] if rank == 0 else everything[rows - 2 :]
    return monitor({"x": mine}, {"x": "x"}) | {"deviation": deviation(mine)}


def test_monitors_are_those_of_the_global_batch(two_processes: Processes) -> None:
    everything = 3 * unit_rows(WORLD * 4, 5)[0]
    expected = monitor({"x": everything}, {"x": "x"}) | {"deviation": deviation(everything)}
    for found in two_processes.run(share, [(4,)] * WORLD):
        torch.testing.assert_close(found, expected)
