"""Centring and Sinkhorn-Knopp as targets: the moving average, over processes and without samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.heads.prototypes import WeightNormPrototypes
from mmssl.losses.sinkhorn import sinkhorn
from mmssl.objectives.parts.teacher_targets import Centring, CentringConfig, SinkhornTargets, SinkhornTargetsConfig
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import sines


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_centre_is_the_moving_average_of_scores_and_used_from_the_next_step_on() -> None:
    torch.manual_seed(0)
    prototypes, centring = WeightNormPrototypes(6, 4).double(), Centring(4, 0.9).double()
    centre = torch.zeros(4, dtype=torch.float64)
    for step in range(3):
        x = rows(7, 6, seed=step)
        scores = prototypes(x).detach()
        torch.testing.assert_close(centring(scores, 0.1), ((scores - centre) / 0.1).softmax(-1))
        torch.testing.assert_close(centring.centre, centre)
        centring.update(x, prototypes)
        centre = 0.9 * centre + 0.1 * scores.mean(0)
        torch.testing.assert_close(centring.centre, centre)
    assert set(centring.state_dict()) == {"centre"}


def test_golden_centre_of_masked_patches() -> None:
    """Of ssl-golden-values-2.json, ibot_centre_after_update_m0.9_sum_abs, equal to lightly's: a mean over tokens."""
    centring = Centring(16, 0.9).double()
    centring.centre.copy_(0.1 * sines(1, 16, 0.5, 0.9, 0.0)[0])
    centring.update(sines(8, 16, 0.3, 0.8, 0.11)[:6], torch.nn.Identity())
    assert centring.centre.abs().sum().item() == pytest.approx(1.0864364047180506, rel=1e-12)


def test_without_a_sample_the_centre_stays() -> None:
    centring, prototypes = Centring(4, 0.9), WeightNormPrototypes(6, 4)
    centring.centre.fill_(0.5)
    centring.update(torch.zeros(0, 6), prototypes)
    assert torch.equal(centring.centre, torch.full((4,), 0.5))


def test_targets_have_no_gradient() -> None:
    scores = rows(5, 4).requires_grad_()
    for targets in (Centring(4, 0.9).double(), SinkhornTargets(3)):
        assert not targets(scores, 0.1).requires_grad


def test_configs_build_what_they_say() -> None:
    centring, balanced = CentringConfig(momentum=0.5).build(4), SinkhornTargetsConfig(iterations=2).build(4)
    assert (centring.momentum, centring.centre.shape, centring.couples_samples) == (0.5, (4,), False)
    assert balanced.couples_samples
    assert not balanced.state_dict()
    scores = rows(5, 4)
    torch.testing.assert_close(balanced(scores, 0.3), sinkhorn(scores, 0.3, 2))


def centre_of_one_process(first: int) -> Tensor:
    torch.manual_seed(0)
    prototypes, centring = WeightNormPrototypes(6, 4).double(), Centring(4, 0.9).double()
    x = rows(7, 6)
    centring.update(x[:first] if torch.distributed.get_rank() == 0 else x[first:], prototypes)
    return centring.centre


@pytest.mark.parametrize("first", [3, 7])
def test_the_centre_is_that_of_all_processes(two_processes: Processes, first: int) -> None:
    torch.manual_seed(0)
    prototypes, centring = WeightNormPrototypes(6, 4).double(), Centring(4, 0.9).double()
    centring.update(rows(7, 6), prototypes)
    for found in two_processes.run(centre_of_one_process, [(first,)] * WORLD):
        torch.testing.assert_close(found, centring.centre)
