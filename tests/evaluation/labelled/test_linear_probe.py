"""The linear probe: scikit-learn's minimum, a choice that never sees the test samples, and honest counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.errors import DataError, NumericError
from mmssl.evaluation.labelled import linear_probe
from mmssl.evaluation.labelled.base import Labelled, classifier_scores, labelled_samples
from mmssl.evaluation.labelled.linear_probe import (
    LinearProbeConfig,
    Scale,
    choose_penalty,
    fit_probes,
    linear_classifier,
    probe_objective,
)
from tests.evaluation.world import collected, colour_shards, configured, items, knowing_model, modalities


def config(**values: Any) -> LinearProbeConfig:
    return configured(LinearProbeConfig, **{"shards": ["x"], "train_shards": ["y"], "modality": "m", **values})


def features(n: int, seed: int, classes: int = 4, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated features of very different sizes, as encoders give them."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    centres, mixing = torch.randn(classes, 6, generator=fixed), torch.randn(6, 12, generator=fixed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    hidden = centres[labels] + noise * torch.randn(n, 6, generator=generator)
    mixed = hidden @ mixing + 0.1 * torch.randn(n, 12, generator=generator)
    return mixed * torch.logspace(-2, 2, 12) + 5, labels


@pytest.mark.parametrize("scale", ["standard", "unit"])
def test_the_minimum_is_scikit_learns(scale: str) -> None:
    from sklearn.linear_model import LogisticRegression

    raw, labels = features(150, 0)
    x = Scale.of(raw, scale)(raw)
    for penalty, probe in fit_probes(x, labels, 4, (1.0, 1e-2)).items():
        model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(x.numpy(), labels.numpy())
        reference = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        expected = probe_objective(*reference, x, labels, penalty).item()
        assert probe.objective == pytest.approx(expected, abs=1e-7)
        assert probe.objective <= expected + 1e-9
        assert probe.gradient < 1e-5
        assert (probe.weight - reference[0]).abs().max() < 1e-3 * (1 + reference[0].abs().max())


def test_features_are_scaled_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = features(150, 0)
    monkeypatch.setattr(linear_probe, "ROWS", 16)
    torch.testing.assert_close(Scale.of(raw, "standard").deviation, raw.double().std(0, unbiased=False))


def test_more_features_than_samples_and_dead_features_can_be_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 40, generator=generator)
    x[:, 7] = 3.0
    x[:, 8] = 0.0
    x[:, 9] = 1.0
    x[0, 9] = 1 + 2**-23  # rounding, and no feature
    labels = torch.arange(10) % 2
    scale = Scale.of(x, "standard")
    assert bool(torch.isfinite(scale(x)).all())
    assert bool((scale(x)[:, 7:10] == 0).all())
    probe = fit_probes(scale(x), labels, 2, (1e-3,))[1e-3]
    assert bool((probe.classify(scale(x), labels).ranks == 1).all())


def test_scaling_uses_training_statistics() -> None:
    x, _ = features(200, 0)
    scale = Scale.of(x, "standard")
    assert scale(x).mean(0).abs().max() < 1e-6
    assert (scale(x).std(0, unbiased=False) - 1).abs().max() < 1e-6
    assert torch.allclose(scale(x + 1) - scale(x), (1 / x.double().std(0, unbiased=False)).expand(200, -1), rtol=1e-3)
    assert torch.allclose(Scale.of(x, "unit")(x).norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert torch.equal(Scale.of(x, "none")(x), x.double())


def scores_of(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **values: Any) -> dict[str, Any]:
    seen, other = Labelled(*train), Labelled(*test, excluded=3, skipped=1)
    answers, said = linear_classifier(seen, config(**values))[0](other)
    return classifier_scores(seen, other, answers) | said


def test_what_can_be_learned_is_learned() -> None:
    scores = scores_of(features(400, 0, noise=0.3), features(200, 1, noise=0.3))
    assert scores["acc1"] > 0.9
    assert scores["validation_acc1"] > 0.9
    assert (scores["n"], scores["n_train"], scores["chance"], scores["classes"]) == (200, 400, 0.25, 4)
    assert (scores["n_excluded"], scores["n_skipped"], scores["n_unseen"]) == (3, 1, 0)
    assert scores["acc5"] is None


def test_what_cannot_be_learned_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    train = torch.randn(400, 8, generator=generator), labels
    test = torch.randn(400, 8, generator=generator), labels
    assert scores_of(train, test)["acc1"] == pytest.approx(0.25, abs=0.08)
    constant = torch.ones(400, 8)
    assert scores_of((constant, labels), (constant, labels))["acc1"] == pytest.approx(0.25)


def test_the_penalty_is_chosen_without_the_test_samples() -> None:
    train = features(200, 0)
    one, other = scores_of(train, features(100, 1)), scores_of(train, features(100, 2))
    assert one["penalty"] == other["penalty"]
    assert one["acc1"] != other["acc1"]


@pytest.mark.parametrize("seen", [(0.5, 1.5), (1.0, 1.0)])
def test_features_are_scaled_as_in_training_whatever_the_test_samples_are(seen: tuple[float, float]) -> None:
    """All test samples are of one class: around their own middle half of them are wrong, and by their own spread all are alike."""
    train = torch.tensor([-1.0, 1]).repeat(20)[:, None], torch.arange(40) % 2
    test = torch.tensor(seen).repeat(5)[:, None], torch.ones(10, dtype=torch.long)
    assert scores_of(train, test)["acc1"] == 1


@pytest.mark.parametrize("validation", [0.3, 0.5])
def test_samples_that_choose_the_penalty_are_as_many_as_asked_and_no_part_of_the_scale(validation: float) -> None:
    """One sample is so far out that a scale which has seen it takes the feature that tells the classes for a constant."""
    labels = torch.arange(20) % 2
    unharmed = 0
    for far in range(20):
        x = torch.stack([2.0 * labels - 1, torch.zeros(20)], 1)
        x[far, 1] = 1e9
        unharmed += choose_penalty(x, labels, 2, config(penalties=[1e-3], validation=validation))[1] == 1
    assert unharmed == round(20 * validation), "where the one far out is among those that choose"


def test_of_equal_penalties_the_larger_is_taken() -> None:
    x, labels = features(100, 0, noise=0.01)  # any penalty is right
    chosen, accuracy = choose_penalty(x, labels, 4, config(penalties=[1e-3, 1e-4]))
    assert (chosen, accuracy) == (1e-3, 1.0)


def test_the_edge_of_the_grid_is_told() -> None:
    train, test = features(100, 0), features(50, 1)
    assert scores_of(train, test, penalties=[1e3, 1e-3, 1e-9])["penalty_at_edge"] == 0
    assert scores_of(train, test, penalties=[1e3, 1e2])["penalty_at_edge"] == 1
    assert scores_of(train, test, penalties=[1e2])["penalty_at_edge"] == 0


def test_labels_that_training_never_showed_are_errors() -> None:
    x, labels = features(200, 0, noise=0.1)
    test, test_labels = features(100, 1, noise=0.1)
    test_labels = torch.where(test_labels == 3, 17, test_labels)
    seen = scores_of(
        (x[labels < 3], labels[labels < 3] * 10), (test, torch.where(test_labels < 3, test_labels * 10, 17))
    )
    unseen = int((test_labels == 17).sum())
    assert (seen["classes"], seen["n_unseen"], seen["n"]) == (3, unseen, 100)
    assert seen["acc1"] == pytest.approx(1 - unseen / 100)


@pytest.mark.parametrize(
    ("labels", "says"), [(torch.zeros(9, dtype=torch.long), "1 class"), (torch.tensor([0, 1]), "wanted more")]
)
def test_too_little_to_train_on_is_refused(labels: Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        scores_of((torch.randn(len(labels), 3), labels), (torch.randn(2, 3), torch.tensor([0, 1])))


def test_features_that_are_not_finite_are_refused_by_key() -> None:
    rows = torch.ones(3, 2)
    rows[1, 1] = torch.nan
    with pytest.raises(NumericError, match="'m' of key 'key1'"):
        labelled_samples(collected(3, m=items(rows), y=items(torch.zeros(3))), "m", "y")


def test_penalties_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="numbers above 0"):
        config(penalties=[1e-3, 0.0])


def test_from_shards_to_scores(tmp_path: Path) -> None:
    values = {"modality": "picture", "batch_size": 7, "max_train_samples": 60, "max_samples": 10}
    train, test = colour_shards(tmp_path / "train", 64), colour_shards(tmp_path / "test", 16)
    evaluator = config(train_shards=train, shards=test, **values).build(modalities())
    scores = dict(evaluator.evaluate(knowing_model()))
    assert scores["acc1"] == 1
    assert (scores["n_train"], scores["n"], scores["n_excluded"], scores["n_train_excluded"]) == (48, 8, 2, 12)


def test_training_and_test_shards_must_number_their_classes_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = colour_shards(tmp_path / "train", 64), colour_shards(tmp_path / "test", 16)
    evaluator = config(train_shards=train, shards=test, modality="picture").build(modalities())
    (tmp_path / "train/classnames.txt").write_text("a\nb\nc\n")
    (tmp_path / "test/classnames.txt").write_text("a\nb\nother\n")
    dict(evaluator.evaluate(knowing_model()))
    assert "1 of 3 class names differ: class 2 is 'c' in" in caplog.text
    (tmp_path / "test/classnames.txt").write_text("b\na\nc\n")
    with pytest.raises(
        DataError, match=r"class 0 is 'a' in .*train.* and 'b' in .*test.*: the same names in another order"
    ):
        dict(evaluator.evaluate(knowing_model()))
