"""One-way InfoNCE against its loop, golden and analytic values, and the symmetric loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.losses.hard_negatives import HardNegatives
from mmssl.losses.info_nce import info_nce
from mmssl.losses.one_way_info_nce import one_way_accuracy, one_way_info_nce
from tests.losses.inputs import golden_rows, golden_views, unit_rows
from tests.losses.slow_loop import slow_loop

MOCO_V3 = 0.5764659542512538  # temperature 0.2, 2 T times the sum of both ways; slow loop
SIMCSE = 0.7264201999026416  # temperature 0.05; simcse_t0.05 of ssl-golden-values.json, equal to torch's cross entropy

CAV_MAE = (
    0.13247078061365747  # cav_mae_contrast_t0.05 of ssl-golden-values-2.json, equal to cav-mae's code: one way of two
)
SIMCSE_HARD = 7.070456274153736  # simcse_hard_negatives_t0.05, equal to torch's cross entropy over 2 N columns


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (17, 2)])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_equals_the_slow_loop(n: int, d: int, temperature: float) -> None:
    query, keys = unit_rows(n, d, seed=n)
    expected = slow_loop(one_way_info_nce)(query, keys, temperature)
    assert one_way_info_nce(query, keys, temperature).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_golden_values() -> None:
    z0, z1 = golden_views()
    both = one_way_info_nce(z0, z1, 0.2) + one_way_info_nce(z1, z0, 0.2)
    assert 2 * 0.2 * both.item() == pytest.approx(MOCO_V3, rel=1e-14)
    assert one_way_info_nce(z0, z1, 0.05).item() == pytest.approx(SIMCSE, rel=1e-13)
    assert one_way_info_nce(z1, z0, 0.05).item() == pytest.approx(CAV_MAE, rel=1e-12)


def test_golden_value_of_hard_negatives() -> None:
    """The way from anchors to positives and hard negatives is the symmetric loss without the way back."""
    z0, z1 = golden_views()
    first, second = golden_rows()
    negatives = F.normalize((first + second).flip(0), dim=-1)
    scale = torch.tensor(20.0, dtype=torch.float64)
    further = HardNegatives(z0, negatives, *torch.ones(2, 8, dtype=torch.bool)).log_sum_exp(scale)
    both = info_nce(z0, z1, scale, further_b=further)
    assert (2 * both - one_way_info_nce(z1, z0, 0.05)).item() == pytest.approx(SIMCSE_HARD, rel=1e-12)


def test_it_is_half_of_the_symmetric_loss() -> None:
    a, b = unit_rows(9, 4)
    there, back = one_way_info_nce(a, b, 0.1), one_way_info_nce(b, a, 0.1)
    torch.testing.assert_close((there + back) / 2, info_nce(a, b, 10.0))
    assert abs(there - back) > 1e-3


def test_queries_of_a_process_find_their_keys_among_all() -> None:
    query, keys = unit_rows(8, 5)
    parts = [slice(0, 3), slice(3, 8)]
    losses = [one_way_info_nce(query[part], keys, 0.2, part.start) * (part.stop - part.start) / 8 for part in parts]
    hits = [one_way_accuracy(query[part], keys, part.start) * (part.stop - part.start) / 8 for part in parts]
    torch.testing.assert_close(torch.stack(losses).sum(), one_way_info_nce(query, keys, 0.2))
    torch.testing.assert_close(torch.stack(hits).sum(), one_way_accuracy(query, keys))


def test_gradients_are_those_of_differences() -> None:
    query, _ = (x.requires_grad_() for x in unit_rows(3, 3))
    keys, _ = (x.requires_grad_() for x in unit_rows(5, 3, seed=1))
    assert torch.autograd.gradcheck(lambda query, keys: one_way_info_nce(query, keys, 0.3, 1), (query, keys))


@pytest.mark.parametrize("n", [2, 13])
def test_collapse_costs_ln_n_and_scores_chance(n: int) -> None:
    rows = F.normalize(torch.ones(n, 4, dtype=torch.float64), dim=-1)
    assert one_way_info_nce(rows, rows, 0.1).item() == pytest.approx(math.log(n), abs=1e-12)
    assert one_way_accuracy(rows, rows).item() == pytest.approx(1 / n)


def test_no_rows_cost_nothing_with_a_graph() -> None:
    none = torch.zeros(0, 4, requires_grad=True)
    loss = one_way_info_nce(none, none, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert none.grad is not None
    assert one_way_accuracy(none.detach(), none.detach()).item() == 0


def test_low_temperature_stays_finite_in_float32() -> None:
    query, keys = unit_rows(32, 8, dtype=torch.float32)
    query.requires_grad_()
    loss = one_way_info_nce(query, keys, 1e-4)
    loss.backward()
    assert loss.isfinite()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, E\] and \[G, E\]"):
        one_way_info_nce(torch.zeros(4, 2), torch.zeros(4, 3), 0.1)
    with pytest.raises(ValueError, match=r"rank \* B"):
        one_way_info_nce(torch.zeros(4, 2), torch.zeros(8, 2), 0.1, 5)
