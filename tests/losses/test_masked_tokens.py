"""Cross entropy of masked tokens: its loop, golden and analytic values, and its two means."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.losses.masked_tokens import class_shares, masked_cross_entropy, mean_of_errors, token_means
from tests.losses.inputs import sines
from tests.losses.slow_loop import slow_loop
from tests.losses.test_latent_prediction import MASK, random, waves

TARGETS = torch.tensor([[(b + 2 * t) % 6 for t in range(5)] for b in range(3)])
OUT = waves(0.4, 0.9, 1.7, 0.21)
TOKENS, SAMPLES, HUBERT = 3.1116976276817856, 3.389160997636342, 6.029548286711716
"""Of ssl-golden-values-2.json: masked_ce_mean_over_tokens, masked_ce_mean_over_samples, hubert_cosine_ce_t0.1."""


def test_equals_the_slow_loop_and_golden_values() -> None:
    costs = masked_cross_entropy(2 * OUT[MASK], TARGETS, MASK)
    torch.testing.assert_close(
        costs, torch.tensor(slow_loop(masked_cross_entropy)(2 * OUT[MASK], TARGETS, MASK)).double()
    )
    assert mean_of_errors(costs, MASK.sum(1), "tokens").item() == pytest.approx(TOKENS, rel=1e-13)
    assert mean_of_errors(costs, MASK.sum(1), "samples").item() == pytest.approx(SAMPLES, rel=1e-13)
    codes = F.normalize(sines(6, 6, 0.8, 0.55, 0.3), dim=1)
    cosines = F.normalize(OUT, dim=-1)[MASK] @ codes.T / 0.1
    costs = masked_cross_entropy(cosines, TARGETS, MASK)
    assert mean_of_errors(costs, MASK.sum(1), "tokens").item() == pytest.approx(HUBERT, rel=1e-13)


def test_equal_scores_cost_ln_k_and_a_sample_without_masked_tokens_nothing() -> None:
    mask = MASK.clone()
    mask[1] = False
    costs = masked_cross_entropy(torch.zeros(int(mask.sum()), 30_522), TARGETS, mask)
    assert costs.tolist() == pytest.approx([math.log(30_522), 0, math.log(30_522)], rel=1e-6)
    values = random(int(mask.sum()))
    assert token_means(values, mask)[2].item() == pytest.approx(values[2:].mean().item())


def test_shares_leave_out_what_is_not_masked() -> None:
    shares = class_shares(torch.tensor([[0, 2, -1], [2, -1, 2]]), 4)
    assert shares.tolist() == [0.25, 0, 0.75, 0]
    assert class_shares(torch.full((2, 3), -1), 4).tolist() == [0, 0, 0, 0]
