"""Few shots: scikit-learn's fits on the same draws, an interval over draws, and classes that are too small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmssl.core.errors import DataError
from mmssl.evaluation.labelled import few_shot
from mmssl.evaluation.labelled.base import Labelled, classifier_scores
from mmssl.evaluation.labelled.few_shot import FewShotConfig, few_shot_classifier
from mmssl.evaluation.labelled.linear_probe import fit_probes
from mmssl.evaluation.statistics import mean_interval
from tests.evaluation.world import configured


def config(**values: Any) -> FewShotConfig:
    return configured(FewShotConfig, **{"shards": ["x"], "train_shards": ["y"], "modality": "m", **values})


def few_shot_scores(train: Labelled, test: Labelled, config: FewShotConfig) -> dict[str, Any]:
    answers, said = few_shot_classifier(train, config)(test)
    return classifier_scores(train, test, answers) | said


def samples(n: int, seed: int, noise: float = 1.0) -> Labelled:
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % 4
    return Labelled(centres[labels] + noise * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), labels)


def test_more_shots_are_better_and_all_of_them_are_scikit_learns_fit() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test = samples(80, 0), samples(400, 1)
    scores = few_shot_scores(train, test, config(shots=[1, 20], draws=3))
    assert scores["acc1_shots20"] > scores["acc1_shots1"] > scores["chance"] == 0.25
    assert scores["acc1_shots1_ci95_low"] < scores["acc1_shots1"] < scores["acc1_shots1_ci95_high"]
    assert scores["acc1_shots20_deviation"] == pytest.approx(0, abs=1e-9), "every draw of 20 of 20 is the same"
    model = LogisticRegression(tol=1e-8, max_iter=5000).fit(F.normalize(train.features).numpy(), train.labels.numpy())
    expected = model.score(F.normalize(test.features).numpy(), test.labels.numpy())
    assert scores["acc1_shots20"] == pytest.approx(expected, abs=0.006)
    assert (scores["n"], scores["n_train"], scores["draws"]) == (400, 80, 3)


def test_a_collapsed_model_scores_chance() -> None:
    points = Labelled(torch.ones(40, 8), torch.arange(40) % 4)
    assert few_shot_scores(points, points, config(shots=[2], draws=2))["acc1_shots2"] == 0.25


def test_a_class_with_too_few_samples_is_named() -> None:
    train = Labelled(torch.randn(5, 3), torch.tensor([7, 7, 7, 9, 9]))
    with pytest.raises(DataError, match="shots: got 3, and class 9 has 2 training samples; lower `shots`"):
        few_shot_scores(train, train, config(shots=[1, 3]))


def test_the_interval_is_students() -> None:
    from scipy import stats

    values = [0.5, 0.6, 0.8]
    mean, low, high, deviation = mean_interval(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_what_is_said_without_shots_is_of_all_draws_of_the_most() -> None:
    train, test = samples(80, 0, noise=3.0), samples(100, 1, noise=3.0)
    answers, said = few_shot_classifier(train, config(shots=[4, 1], draws=5))(test)
    scores = classifier_scores(train, test, answers) | said
    assert said["acc1_shots1_deviation"] > 0  # type: ignore[operator]
    for part in ("", "_ci95_low", "_ci95_high"):
        assert scores[f"acc1{part}"] == pytest.approx(scores[f"acc1_shots1{part}"])
        assert scores[f"macro_f1{part}"] is not None
    table = answers.tables()["samples"]
    assert list(table.columns) == ["key", "class", "predicted_draw0", "rank_draw0", "acc1"]
    assert np.mean(np.array(table.columns["acc1"])) == pytest.approx(scores["acc1"])
    assert len({*table.columns["acc1"]} - {0.0, 1.0}) > 0, "some sample is right in a part of the draws"
    classes = answers.tables()["classes"].columns
    assert classes["n"] == [25, 25, 25, 25]
    assert np.mean(np.array(classes["recall"])) == pytest.approx(scores["mean_per_class_recall"])
    wrong = sum(answers.tables()["confusions"].columns["n"])  # type: ignore[arg-type]
    assert wrong == pytest.approx(100 * (1 - scores["acc1"]))  # type: ignore[operator]


def test_classifiers_are_fitted_once_whatever_they_are_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        fits.append(1)
        return fit_probes(*given, **more)

    monkeypatch.setattr(few_shot, "fit_probes", counted)
    train = samples(40, 0)
    classify = few_shot_classifier(train, config(shots=[1, 2], draws=3))
    found = [classify(samples(20, seed))[0].scores()["acc1"] for seed in (1, 2)]
    assert len(fits) == 6
    assert found[0] != found[1]
