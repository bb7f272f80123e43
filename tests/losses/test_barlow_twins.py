"""Barlow Twins against its loop, golden and analytic values."""

from __future__ import annotations

import pytest
import torch

from mmssl.core import distributed
from mmssl.losses.barlow_twins import barlow_twins
from tests.distributed.processes import Processes
from tests.losses.inputs import GOLDEN, golden_rows, rows
from tests.losses.slow_loop import slow_loop


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (15, 4), (8, 3)])
def test_equals_the_slow_loop(n: int, d: int) -> None:
    a, b = rows(n, d, seed=n, shift=3.0)
    expected = slow_loop(barlow_twins)(a, b)
    assert [x.item() for x in barlow_twins(a, b)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_golden_value() -> None:
    loss = barlow_twins(*golden_rows())
    assert (loss.invariance + 0.005 * loss.redundancy).item() == pytest.approx(GOLDEN["barlow_l0.005"], rel=1e-13)


def test_gradients_are_those_of_differences() -> None:
    a, b = (x.requires_grad_() for x in rows(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b)[:2], (a, b))
    assert not barlow_twins(a, b).correlation.requires_grad


def test_collapse_costs_as_much_as_there_are_features() -> None:
    a = torch.linspace(-5, 5, 7, dtype=torch.float64).expand(6, 7).clone().requires_grad_()
    loss = barlow_twins(a, a + 2)
    assert [x.item() for x in loss] == pytest.approx([7, 0, 0], abs=1e-12)


def test_equal_features_that_say_different_things_cost_nothing() -> None:
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    scaled = signs * torch.tensor([2.0, 30.0, 0.5]) + 4
    assert [x.item() for x in barlow_twins(scaled, signs)] == pytest.approx([0, 0, 1], abs=1e-4)
    # One feature that is said three times: equal views, and six correlations of 1.
    assert [x.item() for x in barlow_twins(signs[:, :1].expand(4, 3), signs[:, :1].expand(4, 3))] == pytest.approx(
        [0, 6, 1], abs=1e-3
    )
    assert [x.item() for x in barlow_twins(signs, -signs)] == pytest.approx([12, 0, -1], abs=1e-3)


def test_invariances() -> None:
    a, b = rows(9, 4)
    loss = torch.stack(barlow_twins(a, b))
    torch.testing.assert_close(torch.stack(barlow_twins(b, a)), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.stack(barlow_twins(a[order], b[order])), loss)
    torch.testing.assert_close(torch.stack(barlow_twins(a, 200 * b + 400)), loss, rtol=1e-3, atol=1e-3)
    assert (torch.stack(barlow_twins(a[order], b)) - loss).abs().min() > 0.05


def test_far_from_zero_in_float32() -> None:
    a, b = rows(64, 5, shift=1000.0)
    exact, got = barlow_twins(a, b), barlow_twins(a.float(), b.float())
    assert [x.item() for x in got] == pytest.approx([x.item() for x in exact], rel=2e-3)


def share(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """The terms of this process' rows, and their gradients under the convention of `core.distributed`."""
    size = len(a) // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    left, right = a[own].requires_grad_(), b[own].requires_grad_()
    loss = barlow_twins(left, right)
    (loss.invariance + 0.3 * loss.redundancy).backward()
    assert left.grad is not None
    assert right.grad is not None
    return {
        "terms": torch.stack(loss).detach(),
        "a": left.grad / distributed.world_size(),
        "b": right.grad / distributed.world_size(),
    }


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
        barlow_twins(torch.zeros(a), torch.zeros(b))
