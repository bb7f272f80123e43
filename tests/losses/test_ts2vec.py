"""The loss of TS2Vec against its loop, golden and analytic values, and over two processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.ts2vec import loss_of_equal, ts2vec
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import GOLDEN
from tests.losses.slow_loop import slow_loop


def tokens(series: int, times: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, series, times, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, 0.6 * a + b


def sines(a: float, c: float, e: float, f: float) -> Tensor:
    """T3 of the golden values: sin(a b + c t + e j + f t j + 0.05 b j), [3, 5, 6]."""
    b, t, j = (torch.arange(size, dtype=torch.float64) for size in (3, 5, 6))
    b, t, j = b[:, None, None], t[None, :, None], j[None, None]
    return torch.sin(a * b + c * t + e * j + f * t * j + 0.05 * b * j)


@pytest.mark.parametrize(
    ("series", "times", "width"), [(1, 1, 3), (4, 1, 3), (1, 5, 3), (3, 2, 4), (4, 7, 3), (5, 12, 2)]
)
def test_equals_the_slow_loop(series: int, times: int, width: int) -> None:
    a, b = tokens(series, times, width, seed=times)
    assert ts2vec(a, b).item() == pytest.approx(slow_loop(ts2vec)(a, b), rel=1e-12, abs=1e-14)


def test_golden_and_analytic_values() -> None:
    got = ts2vec(sines(0.2, 0.7, 1.1, 0.17), sines(0.5, 0.3, 0.9, 0.29)).item()
    assert got == pytest.approx(GOLDEN["ts2vec_hierarchical"], rel=1e-13)
    equal = torch.ones(3, 5, 6, dtype=torch.float64)
    assert ts2vec(equal, equal).item() == pytest.approx(GOLDEN["ts2vec_all_equal_B3_T5"], rel=1e-13)
    assert loss_of_equal(3, 5) == pytest.approx(GOLDEN["ts2vec_all_equal_B3_T5"], rel=1e-13)


def share(start: int, stop: int) -> tuple[float, Tensor]:
    """This process' share of the loss, and the gradient of its rows."""
    a, b = (x[start:stop].clone().requires_grad_() for x in tokens(4, 6, 3))
    loss = ts2vec(a, b, all_a=distributed.gather(a), all_b=distributed.gather(b), offset=start)
    (gradient,) = torch.autograd.grad(loss, a)
    return loss.item(), gradient


def test_two_processes_give_the_loss_and_gradients_of_one(two_processes: Processes) -> None:
    expected, gradient = share(0, 4)
    results = two_processes.run(share, [(2 * rank, 2 * rank + 2) for rank in range(WORLD)])
    assert sum(loss for loss, _ in results) / WORLD == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(torch.cat([part for _, part in results]) / WORLD, gradient, rtol=1e-10, atol=1e-14)


def test_no_rows_have_no_loss_and_wrong_shapes_are_refused() -> None:
    a, b = tokens(3, 4, 2)
    nothing = ts2vec(a[:0].requires_grad_(), b[:0], all_a=a, all_b=b)
    assert nothing.item() == 0
    with pytest.raises(ValueError, match=r"wanted \[B, T, D\] twice"):
        ts2vec(a, b[:, :2])
    with pytest.raises(ValueError, match="got offset 1 for 3 rows among 3"):
        ts2vec(a, b, offset=1)
