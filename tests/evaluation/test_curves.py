"""Average precision and AUROC are scikit-learn's, with ties and weights."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from mmssl.evaluation.curves import PrecisionRecall, area_interval, auroc, auroc_influence, mean_area_interval
from mmssl.evaluation.statistics import mean_by_cluster, wilson


def test_areas_are_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, (6, 50)).astype(np.float32)
    right = rng.random((6, 50)) < 0.3
    weights = rng.integers(0, 3, 50)
    rows = PrecisionRecall(torch.from_numpy(scores), torch.from_numpy(right))
    plain, drawn = (
        rows.average_precision(),
        rows.resampled(torch.from_numpy(np.stack([weights, np.ones_like(weights)], 1)).float()),
    )
    areas = auroc(torch.from_numpy(scores), torch.from_numpy(right))
    for i in range(6):
        assert float(plain[i]) == pytest.approx(average_precision_score(right[i], scores[i]), abs=1e-12)
        expected = average_precision_score(right[i], scores[i], sample_weight=weights)
        assert float(drawn[i, 0]) == pytest.approx(expected, abs=1e-12)
        assert float(drawn[i, 1]) == pytest.approx(float(plain[i]), abs=1e-12)
        assert float(areas[i]) == pytest.approx(roc_auc_score(right[i], scores[i]), abs=1e-12)


def test_equal_scores_are_chance_and_empty_rows_are_not_defined() -> None:
    right = torch.tensor([[True, False, False, True, False], [False] * 5])
    scores = torch.zeros(2, 5)
    assert PrecisionRecall(scores, right).average_precision().tolist()[0] == 0.4
    assert auroc(scores, right).tolist()[0] == 0.5
    assert PrecisionRecall(scores, right).average_precision()[1].isnan()
    assert auroc(scores, right)[1].isnan()


def slow_delong(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Area and variance (DeLong et al. 1988), pair by pair."""
    above = [[float(a > b) + 0.5 * float(a == b) for b in scores[~right]] for a in scores[right]]
    area = float(np.mean(above))
    by_right, by_wrong = np.mean(above, 1), np.mean(above, 0)
    return area, float(
        ((by_right - area) ** 2).mean() / len(by_right) + ((by_wrong - area) ** 2).mean() / len(by_wrong)
    )


def test_influence_is_delongs_with_ties() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (4, 40)).astype(np.float32)
    right = rng.random((4, 40)) < 0.4
    areas, influence = auroc_influence(torch.from_numpy(scores), torch.from_numpy(right))
    for i in range(4):
        area, variance = slow_delong(scores[i], right[i])
        assert float(areas[i]) == pytest.approx(area, abs=1e-12)
        assert float(influence[i].square().sum()) == pytest.approx(variance, rel=1e-9)
        assert float(influence[i].sum()) == pytest.approx(0, abs=1e-12)


def test_intervals_cover_the_area_and_know_copies() -> None:
    """Two normal distributions with a known area; 300 draws, of which 95 % should lie within: less than 92 % has chance 0.01."""
    rng = np.random.default_rng(2)
    true = 0.5 * (1 + erf(1.0 / 2))
    covered = 0
    for _ in range(300):
        scores = torch.from_numpy(np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 90)]))
        right = torch.arange(150) < 60
        area, influence = (found[0] for found in auroc_influence(scores[None], right[None]))
        low, high = area_interval(float(area), influence, torch.arange(150), 60)
        covered += int(low < true < high)
    assert covered >= 276
    four = auroc_influence(scores.repeat(4)[None], right.repeat(4)[None])
    copies = area_interval(float(four[0][0]), four[1][0], torch.arange(150).repeat(4), 240)
    assert copies == pytest.approx((low, high), abs=1e-12)
    apart = area_interval(float(four[0][0]), four[1][0], torch.arange(600), 240)
    assert apart[1] - apart[0] < 0.6 * (high - low)


def test_classes_that_separate_have_an_interval() -> None:
    areas, influence = auroc_influence(torch.arange(10.0)[None], torch.arange(10)[None] > 6)
    assert area_interval(float(areas[0]), influence[0], torch.arange(10), 3) == wilson(3, 3)
    assert area_interval(0.0, influence[0], torch.arange(10), 3) == wilson(0, 3)


def test_the_interval_of_a_mean_of_areas_is_that_of_a_bootstrap_over_samples() -> None:
    """Of 200 samples with three queries each, whose areas are alike."""
    owner = torch.arange(200).repeat_interleave(3)
    areas = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()[owner]
    _, *expected = mean_by_cluster(areas, owner)
    assert mean_area_interval(areas, owner) == pytest.approx(expected, abs=0.004)
    assert mean_area_interval(torch.ones(6).double(), torch.arange(6)) == wilson(6, 6)
