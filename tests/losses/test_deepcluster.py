"""Cross-entropy against prototypes: its loop, golden and analytic values, samples without a cluster."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.losses.deepcluster import UNASSIGNED, prototype_cross_entropy
from mmssl.losses.kmeans import spherical_kmeans
from tests.losses.inputs import golden_views, unit_rows
from tests.losses.slow_loop import slow_loop
from tests.losses.test_kmeans import STARTS, golden_bank

GOLDEN = 2.7923506700471736
"""Of ssl-golden-values-2.json, deepcluster_v2_ce_t0.1: two views of samples 0 to 6 of a bank, and one that has no cluster."""


def test_equals_the_slow_loop() -> None:
    z = torch.stack(unit_rows(6, 4))
    prototypes = torch.stack(unit_rows(5, 4, seed=1))
    clusters = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(2))
    clusters[1, 0] = clusters[4, 1] = UNASSIGNED
    loop = slow_loop(prototype_cross_entropy, log_sum_exp=lambda x: math.log(sum(map(math.exp, x))))
    expected = [loop(z[:, i], prototypes, clusters[i].tolist(), 0.2) for i in range(6)]
    assert prototype_cross_entropy(z, prototypes, clusters, 0.2).tolist() == pytest.approx(expected, rel=1e-12)


def test_golden_values() -> None:
    bank = golden_bank()
    centroids, nearest = spherical_kmeans(bank, bank[STARTS], 10)
    clusters = nearest[:8, None].clone()
    clusters[7] = UNASSIGNED
    losses = prototype_cross_entropy(torch.stack(golden_views()), centroids[None], clusters, 0.1)
    assert losses[:7].mean().item() == pytest.approx(GOLDEN, rel=1e-13)
    assert losses[7].item() == 0


def test_equal_cosines_cost_ln_k() -> None:
    prototypes, clusters = unit_rows(9, 4)[0][None], torch.zeros(3, 1, dtype=torch.int64)
    losses = prototype_cross_entropy(torch.zeros(2, 3, 4, dtype=torch.float64), prototypes, clusters, 0.1)
    assert losses.tolist() == pytest.approx([math.log(9)] * 3)


def test_gradients_are_those_of_differences() -> None:
    prototypes, clusters = unit_rows(3, 4)[0][None], torch.tensor([[0], [2], [UNASSIGNED]])
    z = torch.stack(unit_rows(3, 4, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: prototype_cross_entropy(z, prototypes, clusters, 0.5), (z,))
    prototype_cross_entropy(z, prototypes, clusters, 0.5).sum().backward()
    assert z.grad is not None
    assert z.grad[:, 2].abs().max() == 0
    assert z.grad[:, :2].abs().min() > 0
