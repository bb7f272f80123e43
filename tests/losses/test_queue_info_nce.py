"""InfoNCE with a queue against its loop, golden and analytic values, and lightly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.queue_info_nce import queue_info_nce
from tests.losses.inputs import golden_views, sines, unit_rows
from tests.losses.slow_loop import slow_loop

GOLDEN = 0.6527296903565416  # temperature 0.07; slow loop, lightly 1.6.0 NTXentLoss with a memory bank to 4.4e-16


def loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    return queue_info_nce(query, key, queue, temperature)[0]


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (5, 2, 9), (16, 8, 4)])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_equals_the_slow_loop(n: int, d: int, k: int, temperature: float) -> None:
    query, key = unit_rows(n, d, seed=n)
    queue, _ = unit_rows(k, d, seed=k + 1)
    expected = slow_loop(queue_info_nce)(query, key, queue, temperature)
    assert loss(query, key, queue, temperature).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_golden_value() -> None:
    bank = F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=-1)
    assert loss(*golden_views(), bank, 0.07).item() == pytest.approx(GOLDEN, rel=1e-14)


def test_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    query, key = unit_rows(6, 4)
    queue, _ = unit_rows(9, 4, seed=1)
    criterion = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(9, 4))
    criterion.memory_bank.bank = queue.clone()
    torch.testing.assert_close(loss(query, key, queue, 0.2), criterion(query, key))


def test_only_the_query_has_a_gradient() -> None:
    query, key = (x.requires_grad_() for x in unit_rows(3, 3))
    queue = unit_rows(4, 3, seed=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda query: loss(query, key, queue, 0.3), (query,))
    loss(query, key, queue, 0.3).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


@pytest.mark.parametrize("k", [1, 20])
def test_collapse_costs_ln_k_plus_1_and_scores_chance(k: int) -> None:
    rows = F.normalize(torch.ones(k + 3, 4, dtype=torch.float64), dim=-1)
    value, accuracy = queue_info_nce(rows[:3], rows[:3].clone(), rows[3:], 0.1)
    assert value.item() == pytest.approx(math.log(k + 1), abs=1e-12)
    assert accuracy.item() == pytest.approx(1 / (k + 1))


def test_accuracy_counts_queries_whose_key_is_nearest() -> None:
    corners = torch.eye(4)
    key = torch.stack([corners[0], corners[1], corners[1]])
    _, accuracy = queue_info_nce(torch.stack([corners[0], corners[2], corners[1]]), key, corners[1:3], 0.1)
    assert accuracy.item() == pytest.approx((1 + 0 + 0.5) / 3)
    assert not accuracy.requires_grad


def test_low_temperature_stays_finite_in_float32() -> None:
    query, key = unit_rows(8, 8, dtype=torch.float32)
    queue, _ = unit_rows(32, 8, seed=1, dtype=torch.float32)
    query.requires_grad_()
    value = loss(query, key, queue, 1e-4)
    value.backward()
    assert value.isfinite()
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("key", "queue"), [((1, 3), (5, 3)), ((2, 3), (5, 4)), ((2, 3), (5, 1)), ((2, 4), (5, 4)), ((2, 3), (3,))]
)
def test_misuse_is_refused(key: tuple[int, ...], queue: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, E\], \[B, E\] and \[K, E\]"):
        queue_info_nce(torch.zeros(2, 3), torch.zeros(key), torch.zeros(queue), 0.1)
