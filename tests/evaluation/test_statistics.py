"""Intervals, recalls by class and classification scores, against scipy and scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.statistics import (
    class_figures,
    classification_scores,
    clustered_bootstrap,
    random_misses,
    share_by_cluster,
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


def test_scores_are_scikit_learns() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, top_k_accuracy_score

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 8, generator=generator)
    labels = torch.randint(0, 7, (500,), generator=generator)  # class 7 does not occur
    predictions = class_ranks(logits, torch.eye(8), labels)
    ranks = predictions.ranks
    scores = classification_scores(predictions, labels, [f"c{i}" for i in range(8)])
    for k, name in ((1, "acc1"), (5, "acc5")):
        assert scores[name] == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=range(8)), abs=1e-12)
    with pytest.warns(UserWarning, match="classes not in y_true"):
        expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert scores["mean_per_class_recall"] == pytest.approx(expected, abs=1e-12)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"), abs=1e-12)
    precision = class_figures(predictions.predicted, labels, 8)["precision"]
    assert precision == pytest.approx(precision_score(labels, logits.argmax(1), average=None).tolist())
    assert scores["absent_classes"] == "c7"
    assert scores["chance"] == 1 / 8
    assert scores["n"] == 500
    assert (scores["acc1_ci95_low"], scores["acc1_ci95_high"]) == wilson(int((ranks == 1).sum()), 500)


def test_accuracy_at_five_of_four_classes_is_not_defined() -> None:
    labels = torch.tensor([0, 3])
    scores = classification_scores(class_ranks(torch.eye(4)[[0, 0]], torch.eye(4), labels), labels, list("abcd"))
    assert scores["acc5"] is None
    assert scores["absent_classes"] == "b, c"


def test_figures_without_a_case_are_none() -> None:
    figures = class_figures(torch.tensor([0, 2, 2, 2]), torch.tensor([0, 0, 2, 2]), 4)
    assert figures == {
        "n": [2, 0, 2, 0],
        "recall": [0.5, None, 1.0, None],
        "precision": [1.0, None, 2 / 3, None],
        "f1": [2 / 3, None, 0.8, None],
    }


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
