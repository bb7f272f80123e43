"""Scores of classifiers: scikit-learn's, intervals of their means over classes, and chance as the mean over all guesses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, top_k_accuracy_score

from mmssl.core.seeding import generator
from mmssl.evaluation.classification import (
    accuracy_scores,
    class_figures,
    class_mean_interval,
    class_means,
    classification_scores,
    random_class_means,
    resampled_class_means,
)
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.statistics import wilson


def test_scores_are_scikit_learns() -> None:
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
    for name in ("mean_per_class_recall", "macro_f1"):
        low, high = scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"]
        assert low < scores[name] < high < low + 0.1  # type: ignore[operator]
        assert low < scores[f"{name}_chance"] < high, "the model guesses"  # type: ignore[operator]


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


def test_draws_are_those_of_a_slow_bootstrap() -> None:
    labels = torch.arange(40) % 4
    predicted = torch.randint(0, 5, (2, 40), generator=torch.Generator().manual_seed(0))
    found = resampled_class_means(predicted, labels, 6, resamples=30, seed=3)
    for i, which in enumerate(generator(3, "class_means").integers(40, size=(30, 40))):
        drawn = [(labels[which], one[which]) for one in predicted]
        f1 = [f1_score(own, answered, average="macro") for own, answered in drawn]
        recall = [np.mean([(answered[own == k] == k).double().mean() for k in own.unique()]) for own, answered in drawn]
        assert found["macro_f1"][i] == pytest.approx(np.mean(f1))
        assert found["mean_per_class_recall"][i] == pytest.approx(np.mean(recall))


def test_intervals_cover_the_means_over_classes_of_many_samples() -> None:
    """Of 200 test sets of 300 samples: below 90 % has a chance of 0.3 % if 95 % are right."""
    rng = np.random.default_rng(0)
    chances = np.array([0.9, 0.5, 0.7, 0.8])

    def samples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = rng.choice(4, n, p=[0.4, 0.1, 0.2, 0.3])
        predicted = np.where(rng.random(n) < chances[labels], labels, rng.integers(0, 4, n))
        return torch.from_numpy(predicted), torch.from_numpy(labels)

    true = class_means(*samples(400_000), 4)
    covered = dict.fromkeys(true, 0)
    for _ in range(200):
        predicted, labels = samples(300)
        drawn = resampled_class_means(predicted[None], labels, 4, resamples=200)
        for name, value in class_means(predicted, labels, 4).items():
            low, high = class_mean_interval(value, drawn[name], torch.bincount(labels, minlength=4).tolist())
            covered[name] += int(low < true[name] < high)
    assert min(covered.values()) >= 180


def test_all_right_and_all_wrong_have_an_interval() -> None:
    """Two classes of 10 and 40 samples: their mean varies as one share of 2^2 / (1/10 + 1/40) = 32 samples."""
    labels = torch.arange(50) // 10 > 0
    for predicted, right in ((labels, 32), (~labels, 0)):
        scores = classification_scores(
            class_ranks(torch.eye(2)[predicted.long()], torch.eye(2), labels.long()), labels.long(), "ab"
        )
        for name in ("mean_per_class_recall", "macro_f1"):
            assert (scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"]) == wilson(right, 32)


@pytest.mark.parametrize(
    ("labels", "answerable"),
    [([0, 0, 1, 2, 2], 3), ([0, 0, 2, 2, 2], 3), ([1, 1, 1, 1], 4), ([0, 1, 1, 3, 3], 3), ([0, 2, 2], 2)],
    ids=["all occur", "one is absent", "three are absent", "one cannot be answered, one is absent", "few"],
)
def test_chance_is_the_mean_over_all_guesses(labels: list[int], answerable: int) -> None:
    classes = max(max(labels) + 1, answerable)
    own = torch.tensor(labels)
    every = [class_means(torch.tensor(guess), own, classes) for guess in product(range(answerable), repeat=len(labels))]
    counts = torch.bincount(own, minlength=classes).tolist()
    found = random_class_means(counts, answerable)
    for name, value in found.items():
        assert value == pytest.approx(np.mean([one[name] for one in every])), name
    right = np.mean([np.mean(np.array(guess) == labels) for guess in product(range(answerable), repeat=len(labels))])
    assert accuracy_scores(own + 1, counts, answerable)["chance"] == pytest.approx(right)


def test_accuracy_at_five_is_of_classes_that_can_be_answered() -> None:
    ranks = torch.tensor([1, 5, 6, 9])
    assert accuracy_scores(ranks, [1, 1, 1, 0, 1], 4)["acc5"] is None
    scores = accuracy_scores(ranks, [1, 1, 1, 0, 0, 1], 5)
    assert (scores["acc5"], scores["acc5_chance"], scores["chance"]) == (0.5, 0.75, 0.15)
