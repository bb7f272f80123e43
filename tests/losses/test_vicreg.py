"""VICReg against its loop, golden and analytic values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.vicreg import COLLAPSED, vicreg
from tests.distributed.processes import Processes
from tests.losses.inputs import GOLDEN, golden_rows, rows
from tests.losses.slow_loop import slow_loop

WEIGHTS = torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64)


def total(a: Tensor, b: Tensor) -> Tensor:
    return (torch.stack(vicreg(a, b)[:3]) * WEIGHTS).sum()


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (15, 4), (8, 3)])
def test_equals_the_slow_loop(n: int, d: int) -> None:
    a, b = rows(n, d, seed=n, shift=3.0)
    expected = slow_loop(vicreg)(a, b)
    assert [x.item() for x in vicreg(a, b)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_golden_value() -> None:
    assert total(*golden_rows()).item() == pytest.approx(GOLDEN["vicreg_25_25_1"], rel=1e-13)


def test_gradients_are_those_of_differences() -> None:
    a, b = (x.requires_grad_() for x in rows(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b)[:3], (a, b))
    assert not vicreg(a, b).deviation.requires_grad


def test_collapse_costs_the_hinge_alone() -> None:
    a = torch.linspace(-5, 5, 7, dtype=torch.float64).expand(6, 7).clone().requires_grad_()
    loss = vicreg(a, a)
    assert [x.item() for x in loss] == pytest.approx([0, COLLAPSED, 0, 0], abs=1e-12)
    assert total(a, a).item() == pytest.approx(24.75)
    total(a, a).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_equal_views_of_spread_and_uncorrelated_features_cost_nothing() -> None:
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    wide = signs * torch.tensor([0.9, 3.0, 1.0]) + 4  # standard deviations of sqrt(4 / 3) times these, all above 1
    assert [x.item() for x in vicreg(wide, wide)[:3]] == [0, 0, 0]
    narrow = vicreg(0.3 * wide, 0.3 * wide)
    assert narrow.variance > 0.1
    assert narrow.covariance < 1e-30
    # One feature that is said three times, of variance v: six covariances of v in each view.
    copies = wide[:, 1:2].expand(4, 3)
    assert vicreg(copies, copies).covariance.item() == pytest.approx(2 * 6 * 12.0**2 / 3)


def test_each_view_is_regularised_by_itself() -> None:
    a, b = rows(9, 4)
    for one in (vicreg(a, a), vicreg(b, b)):
        assert one.invariance == 0
    for name in ("variance", "covariance", "deviation"):
        of_both = (getattr(vicreg(a, a), name) + getattr(vicreg(b, b), name)) / 2
        torch.testing.assert_close(getattr(vicreg(a, b), name), of_both)


def test_invariances() -> None:
    a, b = rows(9, 4)
    loss = torch.stack(vicreg(a, b))
    torch.testing.assert_close(torch.stack(vicreg(b, a)), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.stack(vicreg(a[order], b[order])), loss)
    torch.testing.assert_close(torch.stack(vicreg(a + 7, b + 7)), loss)
    assert vicreg(a[order], b).invariance - loss[0] > 0.05


def test_far_from_zero_in_float32() -> None:
    a, b = rows(64, 5)
    a, b = a + 1000, b + 1000
    exact, got = vicreg(a, b), vicreg(a.float(), b.float())
    assert [x.item() for x in got] == pytest.approx([x.item() for x in exact], rel=2e-3)


def share(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """The terms, averaged over processes, and their gradients under the convention of `core.distributed`."""
    world = distributed.world_size()
    size = len(a) // world
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    left, right = a[own].requires_grad_(), b[own].requires_grad_()
    total(left, right).backward()
    assert left.grad is not None
    assert right.grad is not None
    terms = distributed.total_detached(torch.stack(vicreg(left, right))) / world
    return {"terms": terms, "a": left.grad / world, "b": right.grad / world}


def test_two_processes_equal_one(two_processes: Processes) -> None:
    a, b = rows(8, 3, shift=1.0)
    expected = share(a.clone(), b.clone())
    first, second = two_processes.run(share, [(a, b)] * 2)
    for found in (first, second):
        torch.testing.assert_close(found["terms"], expected["terms"])
    for name in ("a", "b"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), expected[name])


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        ((4, 2), (4, 3), r"got a \(4, 2\) and b \(4, 3\), wanted equal shapes \[B, E\]"),
        ((4, 2, 1), (4, 2, 1), "wanted equal shapes"),
        ((1, 2), (1, 2), "got 1 row over all processes, wanted at least 2"),
    ],
)
def test_misuse_is_refused(a: tuple[int, ...], b: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        vicreg(torch.zeros(a), torch.zeros(b))
