"""Losses of wav2vec 2.0: loops, golden and analytic values, two processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.wav2vec2 import code_diversity, code_perplexity, masked_contrast
from tests.distributed.processes import WORLD, Processes
from tests.losses.slow_loop import slow_loop
from tests.losses.test_latent_prediction import MASK, random, waves

CONTRAST_SUM, DIVERSITY = 0.48685762878767047, 0.006521012322422082
"""Of ssl-golden-values-2.json: wav2vec2_contrastive_sum_t0.1, wav2vec2_diversity_G2_V4; transformers agrees to 4e-7."""


def test_golden_contrast_over_all_masked_frames() -> None:
    context, quantised = waves(0.2, 0.7, 1.1, 0.17), waves(0.5, 0.3, 0.9, 0.29)
    total = 0.0
    for row, mask in enumerate(MASK):
        given = context[row : row + 1, mask], quantised[row : row + 1, mask]
        cost, _ = masked_contrast(*given, torch.arange(int(mask.sum()))[None], 0.1)
        total += cost.item() * int(mask.sum())
    assert total == pytest.approx(CONTRAST_SUM, rel=1e-12)


def test_contrast_equals_the_loop_without_distractors_of_the_same_codes() -> None:
    context, quantised = random(3, 6, 5), random(3, 6, 5, seed=1)
    codes = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 3], [7, 7, 7, 7, 7, 7]])
    costs, hits = masked_contrast(context, quantised, codes, 0.3)
    loop = slow_loop(masked_contrast, unit=lambda x: F.normalize(x, dim=0))
    torch.testing.assert_close(costs, torch.tensor(loop(context, quantised, codes, 0.3), dtype=torch.float64))
    assert costs[2] == 0
    assert hits[2] == pytest.approx(1 / 6), "without distractors nothing is told: chance"
    equal, _ = masked_contrast(torch.ones(1, 6, 5), torch.ones(1, 6, 5), codes[:1], 0.1)
    assert equal.item() == pytest.approx(math.log(6), rel=1e-6)


def probabilities() -> Tensor:
    b, t, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, 5, 8)), indexing="ij")
    scores = torch.sin(0.3 * b + 1.3 * t + 0.6 * j + 0.11 * t * j + 0.05 * b * j)
    return scores.view(3, 5, 2, 4).softmax(-1)


def test_golden_diversity_and_collapse() -> None:
    found = code_perplexity(probabilities().sum(1), torch.full((3,), 5))
    assert code_diversity(found, 4).item() == pytest.approx(DIVERSITY, rel=1e-10)
    one = torch.zeros(3, 2, 4)
    one[..., 1] = 5
    assert code_diversity(code_perplexity(one, torch.full((3,), 5)), 4).item() == pytest.approx(0.75, abs=1e-5)


def share(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    sums.requires_grad_()
    loss = code_diversity(code_perplexity(sums, counts), 4)
    loss.backward()
    assert sums.grad is not None
    return loss.detach(), sums.grad


def test_codes_are_counted_over_all_processes(two_processes: Processes) -> None:
    sums = torch.cat([probabilities().sum(1), probabilities()[:1].sum(1)])
    counts = torch.full((4,), 5)
    loss, gradient = share(sums.clone(), counts)
    given = zip(sums.chunk(WORLD), counts.chunk(WORLD), strict=True)
    found = two_processes.run(share, [(part.clone(), count.clone()) for part, count in given])
    assert [float(one) for one, _ in found] == pytest.approx([loss.item()] * WORLD, rel=1e-12)
    torch.testing.assert_close(torch.cat([one for _, one in found]) / WORLD, gradient)
