"""NT-Xent against its loop, golden and analytic values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.losses.info_nce import info_nce
from mmssl.losses.nt_xent import nt_xent, nt_xent_accuracy
from tests.losses.inputs import GOLDEN, golden_views, unit_rows
from tests.losses.slow_loop import slow_loop


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (16, 8), (17, 2)])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_equals_the_slow_loop(n: int, d: int, temperature: float) -> None:
    a, b = unit_rows(n, d, seed=n)
    expected = slow_loop(nt_xent)(a, b, temperature)
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_golden_value() -> None:
    assert nt_xent(*golden_views(), 0.1).item() == pytest.approx(GOLDEN["ntxent_t0.1"], rel=1e-14)


def test_is_not_infonce_between_the_views() -> None:
    a, b = unit_rows(16, 4)
    assert nt_xent(a, b, 0.1) - info_nce(a, b, 10.0) > 0.3


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_processes_average_to_the_loss_of_the_whole(processes: int) -> None:
    a, b = unit_rows(8, 5)
    size = 8 // processes
    shares, accuracies = [], []
    for rank in range(processes):
        rows = slice(rank * size, (rank + 1) * size)
        shares.append(nt_xent(a[rows], b[rows], 0.2, all_a=a, all_b=b, offset=rank * size))
        accuracies.append(nt_xent_accuracy(a[rows], b[rows], all_a=a, all_b=b, offset=rank * size))
    torch.testing.assert_close(torch.stack(shares).mean(), nt_xent(a, b, 0.2))
    torch.testing.assert_close(torch.stack(accuracies).mean(), nt_xent_accuracy(a, b))


def test_gradients_are_those_of_differences() -> None:
    a, b = (x.requires_grad_() for x in unit_rows(3, 3))
    all_a, all_b = (x.requires_grad_() for x in unit_rows(5, 3, seed=1))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), (a, b))
    assert torch.autograd.gradcheck(
        lambda a, b, x, y: nt_xent(a, b, 0.3, all_a=x, all_b=y, offset=1), (a, b, all_a, all_b)
    )


def test_invariances() -> None:
    a, b = unit_rows(9, 6)
    loss = nt_xent(a, b, 0.1)
    torch.testing.assert_close(nt_xent(b, a, 0.1), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(a[order], b[order], 0.1), loss)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    torch.testing.assert_close(nt_xent(a @ rotation, b @ rotation, 0.1), loss)
    assert abs(nt_xent(a[order], b, 0.1) - loss) > 0.1


@pytest.mark.parametrize("n", [2, 13])
def test_collapse_costs_ln_2n_minus_1_and_scores_chance(n: int) -> None:
    a = F.normalize(torch.ones(n, 4, dtype=torch.float64), dim=-1)
    assert nt_xent(a, a.clone(), 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)
    assert nt_xent_accuracy(a, a.clone()).item() == pytest.approx(1 / (2 * n - 1))


def test_accuracy_sees_its_own_set_too() -> None:
    # Both first views are alike, so that each is the nearest of the other although all second views are right in order.
    a = F.normalize(torch.tensor([[1.0, 0.05], [1.0, -0.05]]), dim=-1)
    b = torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    assert nt_xent_accuracy(a, b).item() == 0.5
    assert nt_xent_accuracy(torch.eye(4), torch.eye(4)).item() == 1


def test_low_temperature_stays_finite_in_float32() -> None:
    a, b = unit_rows(32, 8, dtype=torch.float32)
    a.requires_grad_()
    loss = nt_xent(a, b, 1e-4)
    loss.backward()
    assert loss.isfinite()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"b": torch.zeros(3, 2)}, "wanted equal shapes"),
        ({"all_b": torch.zeros(8, 2)}, "wanted equal numbers"),
        ({"offset": 1}, "rank \\* B"),
    ],
)
def test_misuse_is_refused(arguments: dict[str, object], complaint: str) -> None:
    given: dict[str, object] = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)} | arguments
    with pytest.raises(ValueError, match=complaint):
        nt_xent(temperature=0.1, **given)  # type: ignore[arg-type]
