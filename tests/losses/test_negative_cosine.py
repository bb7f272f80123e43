"""Negative cosine similarity and the spread of embeddings against their loop, golden and analytic values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.negative_cosine import negative_cosine, spread
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import GOLDEN, golden_rows, unit_rows
from tests.losses.slow_loop import slow_loop


def rows(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of rows [n, d], not normalised."""
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, b


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (17, 2)])
def test_equals_the_slow_loop(n: int, d: int) -> None:
    a, b = rows(n, d, seed=n)
    assert negative_cosine(a, b).item() == pytest.approx(slow_loop(negative_cosine)(a, b), rel=1e-12)


def test_golden_values() -> None:
    z0, z1 = golden_rows()
    assert negative_cosine(z0, z1).item() == pytest.approx(GOLDEN["simsiam"], rel=1e-14)
    unbiased = (
        spread(z0).item() * (8 / 7) ** 0.5 / 16**0.5
    )  # lightly divides by n - 1, and leaves sqrt(E) to the reader
    assert unbiased == pytest.approx(GOLDEN["std_l2norm_collapse"], rel=1e-12)


def test_analytic_values() -> None:
    a, _ = rows(6, 4)
    assert negative_cosine(a, 3 * a).item() == pytest.approx(-1)
    assert negative_cosine(a, -a).item() == pytest.approx(1)
    assert negative_cosine(torch.eye(4)[:2], torch.eye(4)[2:]).item() == 0
    byol = (F.normalize(a, dim=-1) - F.normalize(a.flip(0), dim=-1)).square().sum(-1).mean()
    assert 2 + 2 * negative_cosine(a, a.flip(0)).item() == pytest.approx(byol.item())


def test_gradients_are_those_of_differences_and_none_flows_to_the_target() -> None:
    a, b = (x.requires_grad_() for x in rows(3, 4))
    assert torch.autograd.gradcheck(lambda a: negative_cosine(a, b), (a,))
    negative_cosine(a, b).backward()
    assert a.grad is not None
    assert b.grad is None


def test_spread_is_one_on_the_sphere_and_zero_at_collapse() -> None:
    a, b = unit_rows(4000, 16)
    assert spread(a).item() == pytest.approx(1, rel=0.01)
    assert spread(5 * a).item() == pytest.approx(spread(a).item())
    assert spread(torch.ones(8, 16)).item() == pytest.approx(0, abs=1e-3)
    assert 0.05 < spread(1 + 0.1 * b * 16**0.5).item() < 0.15
    assert spread(torch.tensor([[1.0], [-1.0]])).item() == 1


def part(rank_rows: int) -> Tensor:
    rank = torch.distributed.get_rank()
    return spread(rows(WORLD * rank_rows, 5)[0][rank * rank_rows : (rank + 1) * rank_rows])


def test_spread_is_that_of_the_global_batch(two_processes: Processes) -> None:
    expected = spread(rows(WORLD * 3, 5)[0])
    for found in two_processes.run(part, [(3,)] * WORLD):
        torch.testing.assert_close(found, expected)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted equal shapes \[B, E\]"):
        negative_cosine(torch.zeros(4, 2), torch.zeros(1, 2))
