"""KoLeo: its loop, golden and analytic values, gradients, two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.koleo import koleo
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import golden_rows, rows
from tests.losses.slow_loop import slow_loop

GOLDEN = -0.05613620649956916
"""Of ssl-golden-values-2.json, koleo_two_views_weight0.1; lightly's KoLeoLoss agrees exactly."""


def test_golden_value_and_the_slow_loop() -> None:
    z0, z1 = golden_rows()
    assert 0.1 * (koleo(z0, z0) + koleo(z1, z1)).item() == pytest.approx(GOLDEN, rel=1e-12)
    x, _ = rows(9, 5)
    assert koleo(x, x).item() == pytest.approx(slow_loop(koleo)(x), rel=1e-12)


def test_equal_rows_cost_most_and_orthogonal_ones_their_distance() -> None:
    equal = torch.ones(4, 16, dtype=torch.float64)
    assert koleo(equal, equal).item() == pytest.approx(-math.log(5e-8))
    apart = torch.eye(4, dtype=torch.float64)
    assert koleo(apart, apart).item() == pytest.approx(-math.log(2**0.5), abs=1e-7)
    assert koleo(equal[:1], equal[:1]).item() == 0


def shares(x: Tensor) -> tuple[Tensor, Tensor]:
    x.requires_grad_()
    loss = koleo(x, distributed.gather(x), distributed.rank() * len(x))
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad


def test_neighbours_are_those_of_all_processes(two_processes: Processes) -> None:
    x, _ = rows(8, 5)
    loss, gradient = shares(x.clone())
    found = two_processes.run(shares, [(part,) for part in x.chunk(WORLD)])
    assert sum(float(one) for one, _ in found) / WORLD == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([one for _, one in found]) / WORLD, gradient)
