"""Measures of features: values that can be written down, slow loops, and what collapse looks like."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.geometry import (
    alignment,
    effective_rank,
    entropy_rank,
    feature_spread,
    lidar,
    rankme,
    uniformity,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotated(x: Tensor, seed: int = 5) -> Tensor:
    size = x.shape[-1]
    return x @ torch.linalg.qr(random(size, size, seed=seed).double()).Q.to(x.dtype)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_rank_of_k_equal_singular_values_is_k(k: int) -> None:
    features = torch.zeros(40, 16)
    features[:k, :k] = 7 * torch.eye(k)
    assert entropy_rank(torch.full((k,), 2.0)) == pytest.approx(k, rel=1e-6)
    assert rankme(rotated(features)) == pytest.approx(k, rel=1e-4)


def test_both_ranks_are_those_of_their_definitions() -> None:
    features = random(50, 12) * torch.logspace(0, -2, 12) + 3

    def by_definition(x: Tensor, eps: float) -> float:
        values = torch.linalg.svdvals(x.double())
        shares = values / values.sum() + eps
        return float((-shares * shares.log()).sum().exp())

    assert rankme(features) == pytest.approx(by_definition(features, 1e-7), rel=1e-6)
    assert rankme(features, 1e-5) == pytest.approx(by_definition(features, 1e-5), rel=1e-6)
    assert effective_rank(features) == pytest.approx(by_definition(features - features.mean(0), 0), rel=1e-5)


def test_a_common_part_lowers_rankme_and_not_the_effective_rank() -> None:
    features = random(200, 8)
    shifted = features + 100
    assert rankme(shifted) < 1.5 < 7 < rankme(features)
    assert effective_rank(shifted) == pytest.approx(effective_rank(features), rel=1e-3)


def test_more_dimensions_than_samples_and_many_rows() -> None:
    assert 3 < rankme(random(4, 300)) <= 4.001
    wide = random(20000, 3)  # more rows than are taken at once
    values = torch.linalg.svdvals(wide.double())
    assert rankme(wide) == pytest.approx(entropy_rank(values), rel=1e-4)


def test_the_spread_is_one_where_features_lie_evenly_and_zero_where_they_are_one() -> None:
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert feature_spread(3 * corners).value == pytest.approx(1)
    assert feature_spread(rotated(random(5000, 32))).value == pytest.approx(1, abs=0.02)
    assert feature_spread(torch.ones(10, 6)).value == pytest.approx(0, abs=1e-7)
    assert feature_spread(random(500, 32) + 30).value < 0.1


def test_uniformity_has_its_known_values() -> None:
    antipodes = torch.tensor([[3.0, 0, 0], [-1, 0, 0]])
    assert uniformity(antipodes).value == pytest.approx(-8)
    assert uniformity(torch.ones(700, 5)).value == pytest.approx(0, abs=1e-5)
    assert uniformity(random(600, 1000)).value == pytest.approx(-4, abs=0.05)
    assert uniformity(torch.ones(1, 5)) is None


@pytest.mark.parametrize("n", [2, 37, 513, 2500])
def test_uniformity_is_the_mean_over_all_pairs(n: int) -> None:
    features = random(n, 4) + 1
    slow = torch.pdist(F.normalize(features.double(), dim=1)).square().mul(-2).exp().mean().log()
    assert uniformity(features).value == pytest.approx(float(slow), abs=1e-5)


@pytest.mark.parametrize("q", [2, 3])
def test_alignment_is_the_mean_over_pairs_of_views(q: int) -> None:
    views = random(10, q, 5)
    unit = F.normalize(views, dim=2)
    pairs = [(i, j) for i in range(q) for j in range(i)]
    slow = sum(float((unit[:, i] - unit[:, j]).square().sum(1).mean()) for i, j in pairs) / len(pairs)
    assert alignment(views).value == pytest.approx(slow, rel=1e-5)
    assert alignment(views[:, :1].expand(-1, q, -1)).value == pytest.approx(0, abs=1e-12)


def test_opposite_views_are_as_far_apart_as_can_be() -> None:
    x = random(10, 1, 5)
    assert alignment(torch.cat([x, -x], 1)).value == pytest.approx(4)


def slow_interval(values: list[float]) -> tuple[float, float]:
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def test_intervals_are_those_of_a_bootstrap_over_samples() -> None:
    """Rows in pairs of one sample, which are nearly alike: drawing rows one by one would give too narrow an interval."""
    features = (random(200, 1, 4) + 0.1 * random(200, 2, 4, seed=1) + torch.tensor([1.0, 0, 0, 0])).flatten(0, 1)
    owner = torch.arange(200).repeat_interleave(2)
    chosen = [torch.randint(0, 200, (200,), generator=torch.Generator().manual_seed(i)) for i in range(400)]
    drawn = [features.view(200, 2, 4)[one] for one in chosen]
    wide = [slow_interval([feature_spread(one.flatten(0, 1)).value for one in drawn])]
    wide.append(slow_interval([alignment(one).value for one in drawn]))
    for found, expected in zip(
        (feature_spread(features, owner), alignment(features.view(200, 2, 4))), wide, strict=True
    ):
        assert found.low < found.value < found.high
        assert found.high - found.low == pytest.approx(expected[1] - expected[0], rel=0.2)
    assert feature_spread(features).high - feature_spread(features).low < 0.8 * (wide[0][1] - wide[0][0])


def test_the_interval_of_uniformity_covers_what_it_should() -> None:
    """Of 200 draws of 60 rows: below 90 % has a chance of 0.3 % if 95 % are right."""
    true, covered = uniformity(random(3000, 4) + 0.7), 0
    assert true is not None
    for seed in range(200):
        found = uniformity(random(60, 4, seed=1 + seed) + 0.7)
        assert found is not None
        covered += int(found.low < true.value < found.high)
    assert covered >= 180


@pytest.mark.parametrize("k", [2, 5])
def test_lidar_counts_directions_in_which_samples_differ(k: int) -> None:
    means = torch.zeros(2 * k, 12)
    means[:k, :k], means[k:, :k] = torch.eye(k), -torch.eye(k)
    assert lidar(rotated(means)[:, None].expand(-1, 3, -1)) == pytest.approx(k, rel=1e-4)


def test_lidar_is_that_of_its_definition() -> None:
    views = random(20, 4, 6) * torch.logspace(0, -1, 6) + 2 * random(20, 1, 6, seed=1)
    exact = views.double()
    means = exact.mean(1)
    between, within = torch.zeros(6, 6).double(), torch.zeros(6, 6).double()
    for sample, mean in zip(exact, means, strict=True):
        between += torch.outer(mean - means.mean(0), mean - means.mean(0)) / 20
        for view in sample:
            within += torch.outer(view - mean, view - mean) / 80
    values, vectors = torch.linalg.eigh(within + 1e-4 * torch.eye(6))
    root = vectors @ values.rsqrt().diag() @ vectors.T
    spectrum = torch.linalg.eigvalsh(root @ between @ root)
    shares = spectrum / spectrum.sum() + 1e-7
    assert lidar(views) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-6)


def test_lidar_ignores_directions_of_augmentation() -> None:
    """Five directions tell samples apart; in one of them the views of a sample differ a hundred times as much."""
    means = random(200, 1, 5)
    noise = random(200, 4, 5, seed=1) * torch.tensor([0.1, 0.1, 0.1, 0.1, 10])
    assert lidar(means + 0.1 * random(200, 4, 5, seed=2)) == pytest.approx(5, abs=0.3)
    assert lidar(means + noise) == pytest.approx(4, abs=0.3)


def test_collapsed_features_have_no_rank_to_speak_of() -> None:
    point = random(1, 32)
    collapsed = point.expand(300, -1) * (1 + 1e-8 * random(300, 32, seed=1))
    assert effective_rank(collapsed) is None
    assert lidar(collapsed[:, None].expand(-1, 2, -1)) is None
    assert rankme(collapsed) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(5, 4)) is None
    line = random(300, 1, seed=2) * point
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert math.isfinite((uniformity(line) or feature_spread(line)).value)


def test_hubs_are_seen() -> None:
    """Every query finds all but its own candidate: even. One candidate amid all queries: a hub."""
    from scipy.stats import skew

    from mmssl.evaluation.relations.modality_gap import hubness

    skewness, chance, unreached, lost = hubness(torch.eye(12), torch.eye(12), k=1)
    assert (skewness, unreached) == (None, 0)
    assert lost == pytest.approx((11 / 12) ** 12)
    assert chance == pytest.approx((1 - 2 / 12) / math.sqrt(12 * 1 / 12 * 11 / 12))
    queries, candidates = F.normalize(random(300, 64), dim=1), F.normalize(random(200, 64, seed=1), dim=1)
    candidates[0] = F.normalize(queries.mean(0), dim=0)
    places = (queries @ candidates.T).topk(10, dim=1).indices
    counts = torch.bincount(places.flatten(), minlength=200)
    skewness, chance, unreached, lost = hubness(queries, candidates)
    assert skewness == pytest.approx(skew(counts.numpy()))
    assert skewness is not None
    assert chance is not None
    assert skewness > 2 * chance
    assert unreached == float((counts == 0).double().mean())
    assert lost == pytest.approx((190 / 200) ** 300)
    collapsed = hubness(queries[:1].expand(50, -1), candidates[:1].expand(40, -1))
    assert collapsed[2] == 0.75, "the ten first are found by all"
