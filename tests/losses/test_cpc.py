"""CPC: its loop, golden and analytic values, two processes, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.cpc import cpc
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import sines
from tests.losses.slow_loop import slow_loop
from tests.losses.test_latent_prediction import random, waves

GOLDEN = 2.802657593789891
"""Of ssl-golden-values-2.json: cpc_all_candidates_mean_dim, 3 sequences of 5 times, two steps."""


def test_golden_value_and_the_slow_loop() -> None:
    contexts, z = waves(0.2, 0.7, 1.1, 0.17), waves(0.5, 0.3, 0.9, 0.29)
    weights = [sines(6, 6, 0.6, 0.35, 0.2 + 0.1 * k) for k in range(2)]
    predictions = torch.stack([contexts[:, :3] @ weight.T for weight in weights])
    assert cpc(predictions, z)[0].item() == pytest.approx(GOLDEN, rel=1e-12)
    assert slow_loop(cpc)(predictions, z) == pytest.approx(GOLDEN, rel=1e-12)


def test_equal_scores_cost_ln_of_all_candidates_and_sure_ones_nothing() -> None:
    loss, _ = cpc(torch.zeros(2, 3, 3, 6), random(3, 5, 6).float())
    assert loss.item() == pytest.approx(math.log(15), rel=1e-6)
    z = 40 * torch.eye(15, dtype=torch.float64).view(3, 5, 15)
    loss, hits = cpc(torch.stack([z[:, 1:4], z[:, 2:5]]), z)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert hits.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"wanted \[K, n, S, D\] and \[N, S \+ K, D\]"):
        cpc(torch.zeros(2, 3, 4, 6), torch.zeros(3, 5, 6))


def share(predictions: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    z.requires_grad_()
    loss, _ = cpc(predictions, distributed.gather(z), distributed.rank() * len(z))
    loss.backward()
    assert z.grad is not None
    return loss.detach(), z.grad


def test_candidates_are_those_of_all_processes(two_processes: Processes) -> None:
    predictions, z = random(2, 4, 3, 6, seed=1), random(4, 5, 6)
    loss, gradient = share(predictions, z.clone())
    given = zip(predictions.chunk(WORLD, 1), z.chunk(WORLD), strict=True)
    found = two_processes.run(share, [(p.contiguous(), part.clone()) for p, part in given])
    assert sum(float(one) for one, _ in found) / WORLD == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([one for _, one in found]) / WORLD, gradient)
