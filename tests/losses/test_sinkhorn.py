"""Sinkhorn-Knopp against its loop, the codes of SwAV and DINOv2, POT and lightly; large scores, uneven processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.sinkhorn import sinkhorn
from tests.distributed.processes import WORLD, Processes
from tests.losses.slow_loop import slow_loop


def cosines(n: int, k: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(m, 6, generator=random, dtype=torch.float64), dim=1) for m in (n, k))
    return x @ y.T


def scaled(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """The codes of SwAV and of DINOv2: a matrix whose columns and rows are scaled in turn, without logarithms."""
    n, k = scores.shape
    plan = (scores / temperature).exp()
    plan = plan / plan.sum()
    for _ in range(iterations):
        plan = plan / plan.sum(0) / k
        plan = plan / plan.sum(1, keepdim=True) / n
    return n * plan


@pytest.mark.parametrize(("n", "k", "iterations"), [(1, 2, 1), (5, 3, 3), (4, 9, 2), (8, 8, 5)])
def test_equals_the_slow_loop(n: int, k: int, iterations: int) -> None:
    scores = cosines(n, k, seed=n)
    expected = torch.tensor(slow_loop(sinkhorn)(scores, 0.1, iterations), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 0.1, iterations), expected, rtol=1e-10, atol=1e-14)


def test_equals_the_codes_of_swav_and_dinov2() -> None:
    scores = cosines(32, 12)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), scaled(scores, 0.05, 3), rtol=1e-10, atol=1e-14)


def test_equals_lightly() -> None:
    oracle = pytest.importorskip("lightly.loss.swav_loss", reason="the extra `oracles` is not installed")
    scores = cosines(32, 12)
    for iterations in (1, 3, 10):
        torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), oracle.sinkhorn(scores, iterations, 0.05))


def test_converges_to_optimal_transport() -> None:
    """After three iterations it is still far from there."""
    ot = pytest.importorskip("ot", reason="the extra `oracles` is not installed")
    n, k = 24, 6
    scores = cosines(n, k)
    plan = ot.sinkhorn([1 / n] * n, [1 / k] * k, -scores.numpy(), 0.05, numItermax=10_000, stopThr=1e-14)
    expected = torch.as_tensor(plan) * n
    torch.testing.assert_close(sinkhorn(scores, 0.05, 200), expected, rtol=1e-6, atol=1e-8)
    assert (sinkhorn(scores, 0.05, 3) - expected).abs().max() > 0.02


def test_rows_sum_to_one_and_columns_are_balanced_in_the_end() -> None:
    scores = cosines(30, 5)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 1).sum(1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(sinkhorn(scores, 0.05, 300).sum(0), torch.full((5,), 6.0, dtype=torch.float64))


def test_large_scores_do_not_overflow() -> None:
    """exp(60 / 0.05) is infinite even in float64."""
    scores = 60 * cosines(16, 4).float()
    assert torch.exp(scores / 0.05).isinf().any()
    codes = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(codes.sum(1), torch.ones(16))
    torch.testing.assert_close(codes.double(), sinkhorn(scores.double(), 0.05, 3), rtol=0, atol=1e-3)


def test_equal_rows_are_assigned_uniformly() -> None:
    codes = sinkhorn(cosines(1, 7).expand(5, 7), 0.05, 3)
    torch.testing.assert_close(codes, torch.full_like(codes, 1 / 7))


def test_no_gradient() -> None:
    assert not sinkhorn(cosines(4, 3).requires_grad_(), 0.1, 3).requires_grad


@pytest.mark.parametrize(("shape", "iterations"), [((4,), 3), ((2, 3, 4), 3), ((4, 3), 0)])
def test_misuse_is_refused(shape: tuple[int, ...], iterations: int) -> None:
    with pytest.raises(ValueError, match=r"wanted \[n, K\] and at least 1"):
        sinkhorn(torch.zeros(shape), 0.1, iterations)


def of_one_process(first: int) -> Tensor:
    scores = cosines(7, 4)
    return sinkhorn(scores[:first] if torch.distributed.get_rank() == 0 else scores[first:], 0.05, 3)


@pytest.mark.parametrize("first", [3, 5, 7])
def test_two_processes_equal_one(two_processes: Processes, first: int) -> None:
    """With different numbers of rows, and with none on one of them."""
    parts = two_processes.run(of_one_process, [(first,)] * WORLD)
    torch.testing.assert_close(torch.cat(parts), sinkhorn(cosines(7, 4), 0.05, 3), rtol=1e-12, atol=1e-15)
