"""Intervals of shares, means, ranks and draws, against scipy and slow loops, and what a random order gives."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.special import xlogy
from scipy.stats import multinomial

from mmssl.core.seeding import generator
from mmssl.evaluation.statistics import (
    Z95,
    clustered_bootstrap,
    draw_counts,
    mean_over_draws,
    paired_difference,
    random_average_precision,
    random_misses,
    rank_intervals,
    resampled_group_means,
    share_by_cluster,
    shifted_percentiles,
    shorten,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 3), (437, 1000), (1, 1)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_nonsense(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="wanted 0 <= successes"):
        wilson(successes, n)


def test_bootstrap_is_the_one_that_draws_clusters() -> None:
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.integers(1, 6, 80))
    hits = torch.tensor(rng.binomial(counts.numpy(), 0.4))
    low, high = clustered_bootstrap(hits, counts, resamples=20000, seed=1)
    drawn = rng.integers(0, 80, (20000, 80))
    ratios = hits.numpy()[drawn].sum(1) / counts.numpy()[drawn].sum(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.006)


def test_bootstrap_is_repeatable_and_knows_clusters() -> None:
    hits = torch.tensor([5, 0] * 50)  # all or nothing by sample: five captions that succeed or fail together
    counts = torch.full((100,), 5)
    clustered = clustered_bootstrap(hits, counts, seed=3)
    assert clustered == clustered_bootstrap(hits, counts, seed=3)
    assert clustered != clustered_bootstrap(hits, counts, seed=4)
    single = clustered_bootstrap(torch.tensor([1, 0] * 250), torch.ones(500, dtype=torch.long), seed=3)
    assert clustered[1] - clustered[0] > 1.8 * (single[1] - single[0])


def test_bootstrap_of_certainty_is_a_point() -> None:
    assert clustered_bootstrap(torch.ones(7), torch.ones(7)) == (1.0, 1.0)


def test_bootstrap_needs_queries() -> None:
    with pytest.raises(ValueError, match="some above 0"):
        clustered_bootstrap(torch.zeros(3), torch.zeros(3))


def test_long_lists_are_cut() -> None:
    assert shorten(list("abcd"), limit=2) == "a, b and 2 more"
    assert shorten(list("ab"), limit=2) == "a, b"


def test_shares_of_nothing_and_of_all_have_an_interval_too() -> None:
    """Every bootstrap draw of equal values is the same; and Wilson's bounds there are exact."""
    owner = torch.arange(10).repeat_interleave(2)
    assert share_by_cluster(torch.zeros(20), owner) == (0.0, *wilson(0, 10))
    assert share_by_cluster(torch.ones(20, dtype=torch.bool), owner) == (1.0, *wilson(10, 10))
    for n in (37, 52, 300):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0
    mean, low, high = share_by_cluster(torch.arange(20) % 2, owner)
    assert (mean, low, high) == (0.5, 0.5, 0.5), "each sample has half: the bootstrap knows"


def test_misses_of_a_random_order_are_those_of_all_orders() -> None:
    for right in (1, 2, 4):
        orders = list(combinations(range(5), right))  # places of the right ones
        every = [sum(min(order) >= r for order in orders) / len(orders) for r in (1, 2, 3)]
        assert random_misses(torch.tensor([right]), 5, 3)[:, 0].tolist() == pytest.approx(every)


def test_average_precision_of_a_random_order_is_the_mean_over_all_orders() -> None:
    for right in (1, 2, 5):
        orders = np.array([*permutations(range(5))]) < right
        precision = (orders.cumsum(1) / np.arange(1, 6) * orders).sum(1) / right
        assert float(random_average_precision(torch.tensor([right]), 5)[0]) == pytest.approx(precision.mean())


@pytest.mark.parametrize(("samples", "each"), [(3, 1), (40, 3), (300, 2)])
def test_intervals_of_ranks_are_those_of_the_draws_one_by_one(samples: int, each: int) -> None:
    ranks = torch.randint(1, 50, (samples * each,), generator=torch.Generator().manual_seed(0))
    owner = torch.arange(samples).repeat_interleave(each)
    mixed = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(1))
    drawn, means, medians = generator(5, "rank_intervals"), [], []
    for count in (64, 36):
        for often in draw_counts(drawn, samples, count):
            chosen = np.repeat(ranks.numpy(), often.repeat(each))
            means.append(chosen.mean())
            medians.append(int(np.median(chosen)))
    mean, median = rank_intervals(ranks[mixed], owner[mixed], resamples=100, seed=5)
    assert mean == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert median == tuple(int(x) for x in np.quantile(medians, [0.025, 0.975]))


def test_draws_of_means_over_groups_are_those_of_a_slow_bootstrap() -> None:
    """Thirty samples with two values each, of three groups, one of which is rare."""
    values = torch.rand(60, generator=torch.Generator().manual_seed(0))
    group, owner = torch.tensor([0, 1, 1, 0, 1, 0] * 10), torch.arange(60) // 2
    group[7] = 2
    found = resampled_group_means(values, group, owner, resamples=70, seed=4)
    drawn = generator(4, "group_means")
    for i, often in enumerate(np.concatenate([draw_counts(drawn, 30, 64), draw_counts(drawn, 30, 6)])):
        times = torch.from_numpy(often)[owner]
        means = [
            (values * times)[group == k].sum() / times[group == k].sum() for k in range(3) if times[group == k].sum()
        ]
        assert found[i] == pytest.approx(float(torch.stack(means).mean()), rel=1e-5)


def test_draws_are_multinomial() -> None:
    often = draw_counts(generator(0), 5, 4000)
    assert (often.sum(1) == 5).all()
    assert often.mean(0) == pytest.approx(1, abs=0.08)
    assert often.var(0) == pytest.approx(0.8, abs=0.1)


def test_what_drawing_alone_adds_is_taken_from_the_interval() -> None:
    drawn = np.linspace(1, 2, 1001)
    assert shifted_percentiles(drawn, 0.7) == pytest.approx((0.7 - 0.475, 0.7 + 0.475))


def test_an_interval_over_draws_and_samples_has_that_of_either_alone() -> None:
    from scipy import stats

    values = [0.5, 0.6, 0.8, 0.55]
    mean, low, high = mean_over_draws(values, 0.0, 1000)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    mean, low, high = mean_over_draws([0.6, 0.6, 0.6], 0.01**2, 30)
    assert (mean, low, high) == pytest.approx((0.6, *stats.t.interval(0.95, 29, 0.6, 0.01)))
    both = mean_over_draws(values, 0.05**2, 1000)
    assert both[2] - both[1] > max(0.05, stats.sem(values)) * 2 * 1.96
    assert mean_over_draws([1.0, 1.0], 0.0, 20) == (1.0, *wilson(20, 20))
    assert mean_over_draws([0.0, 0.0], 0.0, 20) == (0.0, *wilson(0, 20))


def test_an_interval_over_draws_and_samples_covers_what_it_should() -> None:
    """Of 400 experiments with 5 draws of classifiers and 60 samples, 95 % should: fewer than 92 % has a chance of 0.3 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chances = 0.6 + rng.normal(0, 0.08, (5, 1)) + rng.choice([-0.25, 0.25], (1, 60))
        hits = rng.random((5, 60)) < chances
        variance = float(hits.mean(0).var()) / 59
        _, low, high = mean_over_draws(hits.mean(1).tolist(), variance, 60)
        covered += int(low < 0.6 < high)
    assert covered >= 368


@pytest.mark.parametrize(("gained", "lost", "n"), [(5, 1, 12), (3, 0, 9), (1, 1, 2), (20, 5, 160)])
def test_differences_of_paired_proportions_are_those_that_the_score_test_does_not_refuse(
    gained: int, lost: int, n: int
) -> None:
    """Tango's statistic, with the share of losses that is likeliest if the difference is d, searched for."""

    def statistic(difference: float) -> float:
        shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)[1:-1]
        likelihood = (
            xlogy(gained, shares + difference)
            + xlogy(lost, shares)
            + xlogy(n - gained - lost, 1 - difference - 2 * shares)
        )
        share = shares[likelihood.argmax()]
        return float((gained - lost - n * difference) / np.sqrt(n * (2 * share + difference * (1 - difference))))

    low, high = paired_difference(gained, lost, n)
    assert -1 < low < (gained - lost) / n < high < 1
    assert statistic(low) == pytest.approx(Z95, abs=1e-3)
    assert statistic(high) == pytest.approx(-Z95, abs=1e-3)
    assert paired_difference(lost, gained, n) == (-high, -low)


def test_differences_of_paired_proportions_at_the_ends() -> None:
    square = Z95**2
    for n in (1, 4, 100):
        assert paired_difference(0, 0, n) == pytest.approx((-square / (n + square), square / (n + square))), (
            "Wilson's of 0"
        )
        assert paired_difference(n, 0, n) == pytest.approx(((n - square) / (n + square), 1.0))
        assert paired_difference(0, n, n)[0] == -1
    for wrong in ((0, 0, 0), (3, 2, 4), (-1, 0, 4)):
        with pytest.raises(ValueError, match="wanted a sum of at most n"):
            paired_difference(*wrong)


def test_intervals_of_paired_proportions_cover_the_difference() -> None:
    """All outcomes of 30 trials, weighted by their probability."""
    n = 30
    for gain, loss in ((0.05, 0.05), (0.3, 0.1), (0.02, 0.3)):
        covered = sum(
            multinomial.pmf([gained, lost, n - gained - lost], n, [gain, loss, 1 - gain - loss])
            for gained in range(n + 1)
            for lost in range(n + 1 - gained)
            if (bounds := paired_difference(gained, lost, n))[0] <= gain - loss <= bounds[1]
        )
        assert 0.93 < covered < 0.98
