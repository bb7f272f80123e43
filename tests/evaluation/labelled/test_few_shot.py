"""Few shots: scikit-learn's fits on the same draws, an interval over draws, and classes that are too small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats

from mmssl.core.errors import DataError
from mmssl.evaluation.labelled import few_shot
from mmssl.evaluation.labelled.base import Labelled, classifier_scores
from mmssl.evaluation.labelled.few_shot import FewShotConfig, cache_classifier, few_shot_classifier
from mmssl.evaluation.labelled.linear_probe import fit_probes
from mmssl.evaluation.labelled.tip_adapter import cache_scores
from mmssl.evaluation.statistics import mean_interval
from tests.evaluation.world import NAMES, colour_shards, configured, knowing_model, modalities


def config(**values: Any) -> FewShotConfig:
    return configured(FewShotConfig, **{"shards": ["x"], "train_shards": ["y"], "modality": "m", **values})


def few_shot_scores(train: Labelled, test: Labelled, config: FewShotConfig) -> dict[str, Any]:
    answers, said = few_shot_classifier(train, config)[0](test)
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


def test_the_interval_is_over_draws_and_samples() -> None:
    """A quarter of the test samples, a wider interval; every draw alike, one over samples alone."""
    train = samples(80, 0, noise=3.0)
    few, many = (few_shot_scores(train, samples(n, 1, noise=3.0), config(shots=[1], draws=8)) for n in (100, 1600))
    for name in ("acc1", "acc1_shots1", "mean_per_class_recall", "macro_f1"):
        widths = [one[f"{name}_ci95_high"] - one[f"{name}_ci95_low"] for one in (few, many)]
        draws = 2 * stats.t.ppf(0.975, 7) * many["acc1_shots1_deviation"] / 8**0.5
        assert widths[0] > widths[1] > 0.8 * draws
    alike = few_shot_scores(train, samples(100, 1, noise=3.0), config(shots=[20], draws=8))
    share = alike["acc1_shots20"]
    expected = stats.t.ppf(0.975, 99) * (share * (1 - share) / 99) ** 0.5
    assert alike["acc1_shots20_ci95_high"] - share == pytest.approx(expected)
    assert alike["macro_f1_ci95_high"] - alike["macro_f1_ci95_low"] == pytest.approx(2 * expected, rel=0.2)
    assert alike["macro_f1_chance"] == pytest.approx(0.25, abs=0.01)


def test_a_collapsed_model_scores_chance() -> None:
    points = Labelled(torch.ones(40, 8), torch.arange(40) % 4)
    assert few_shot_scores(points, points, config(shots=[2], draws=2))["acc1_shots2"] == 0.25


def test_a_class_with_too_few_samples_is_named() -> None:
    train = Labelled(torch.randn(5, 3), torch.tensor([7, 7, 7, 9, 9]))
    with pytest.raises(DataError, match="shots: got 3, and class 9 has 2 training samples; lower `shots`"):
        few_shot_scores(train, train, config(shots=[1, 3]))


def test_the_interval_is_students() -> None:
    values = [0.5, 0.6, 0.8]
    mean, low, high, deviation = mean_interval(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_what_is_said_without_shots_is_of_all_draws_of_the_most() -> None:
    train, test = samples(80, 0, noise=3.0), samples(100, 1, noise=3.0)
    classify, heads = few_shot_classifier(train, config(shots=[4, 1], draws=5))
    answers, said = classify(test)
    scores = classifier_scores(train, test, answers) | said
    assert said["acc1_shots1_deviation"] > 0  # type: ignore[operator]
    for part in ("", "_ci95_low", "_ci95_high"):
        assert scores[f"acc1{part}"] == pytest.approx(scores[f"acc1_shots1{part}"])
        assert scores[f"macro_f1{part}"] is not None
    table = answers.tables()["samples"]
    of_first = ["predicted", "rank", "score", "true_score", "probability", "true_probability"]
    assert list(table.columns) == ["key", "class", *(f"{name}_draw0" for name in of_first), "acc1"]
    assert np.mean(np.array(table.columns["acc1"])) == pytest.approx(scores["acc1"])
    assert len({*table.columns["acc1"]} - {0.0, 1.0}) > 0, "some sample is right in a part of the draws"
    assert {*table.measures} == {"mean_per_class_recall", "macro_f1"}
    for name, measure in table.measures.items():
        assert float(measure(torch.ones(100, 1))) == pytest.approx(scores[name]), name
    names = ("weight", "bias", "mean", "deviation")
    assert {*heads} == {"classes", *(f"shots{k}.{name}" for k in (4, 1) for name in names)}
    weight, bias, mean, deviation = (heads[f"shots1.{name}"] for name in names)
    logits = (F.normalize(test.features.double(), dim=1) - mean) / deviation @ weight.T + bias
    assert [str(heads["classes"][one].item()) for one in logits.argmax(1)] == table.columns["predicted_draw0"]
    classes = answers.tables()["classes"].columns
    assert classes["n"] == [25, 25, 25, 25]
    assert np.mean(np.array(classes["recall"])) == pytest.approx(scores["mean_per_class_recall"])
    wrong = sum(answers.tables()["confusions"].columns["n"])  # type: ignore[arg-type]
    assert wrong == pytest.approx(100 * (1 - scores["acc1"]))  # type: ignore[operator]
    matrix = answers.tables()["confusion_matrix"].columns
    of_first = [n for name, n in zip(matrix["class"], matrix["n"], strict=True) if name == matrix["class"][0]]
    assert sum(of_first) == pytest.approx(25), "a row sums to the samples of its class"  # type: ignore[arg-type]
    assert scores["confused_pairs"] == sum(a != b for a, b in zip(matrix["class"], matrix["predicted"], strict=True))


def test_classifiers_are_fitted_once_whatever_they_are_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        fits.append(1)
        return fit_probes(*given, **more)

    monkeypatch.setattr(few_shot, "fit_probes", counted)
    train = samples(40, 0)
    classify, _ = few_shot_classifier(train, config(shots=[1, 2], draws=3))
    found = [classify(samples(20, seed))[0].scores()["acc1"] for seed in (1, 2)]
    assert len(fits) == 6
    assert found[0] != found[1]


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_scores_with_a_cache_are_the_slow_loop() -> None:
    rows, prompts, cached, numbers = unit(5, 0), unit(3, 1), unit(4, 2), torch.tensor([2, 0, 2, 1])
    found = cache_scores(rows, prompts, cached, numbers, alpha=3.0, beta=5.5)
    for i, x in enumerate(rows.double()):
        for k, prompt in enumerate(prompts.double()):
            expected = 100 * float(x @ prompt)
            for sample, number in zip(cached.double(), numbers.tolist(), strict=True):
                expected += 3.0 * math.exp(-5.5 * (1 - float(x @ sample))) * (number == k)
            assert float(found[i, k]) == pytest.approx(expected, abs=1e-4)


def test_a_heavy_cache_decides_where_prompts_are_wrong_and_a_light_one_does_not() -> None:
    """Samples of four classes, and prompts that name the next class: the cache of all samples is right, the prompts never."""
    labels = torch.arange(40) % 4 * 2  # class numbers 0, 2, 4, 6 of eight names
    points = Labelled(torch.eye(8)[labels], labels)
    prompts = torch.eye(8)[(torch.arange(8) + 2) % 8]
    shares = {}
    for alpha in (1e-3, 1e3):
        chosen = config(shots=[1, 2], draws=2, tip_adapter=True, classnames=list(NAMES), alpha=alpha)
        shares[alpha] = cache_classifier(points, prompts, chosen)(points)
    for k in (1, 2):
        assert (shares[1e-3][f"acc1_cache_shots{k}"], shares[1e3][f"acc1_cache_shots{k}"]) == (0, 1)
        assert shares[1e3][f"acc1_cache_shots{k}_chance"] == 0.25


def test_prompts_without_a_cache_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"got \['alpha', 'classnames'\] without tip_adapter"):
        config(classnames=list(NAMES), alpha=2.0)


def test_the_cache_needs_a_shared_space_and_stands_beside_the_probe(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path, 40)
    values = {"shards": shards, "train_shards": shards, "modality": "picture", "shots": [1, 2], "draws": 2}
    plain = dict(configured(FewShotConfig, **values).build(modalities()).evaluate(knowing_model()))
    cached = configured(FewShotConfig, **values, tip_adapter=True, prompts="words", classnames=list(NAMES))
    evaluator = cached.build(modalities())
    assert evaluator.headlines == ("acc1_shots1", "acc1_shots2", "acc1_cache_shots1", "acc1_cache_shots2")
    model, passes = knowing_model(), []
    model.encoders["picture"].register_forward_hook(lambda *_: passes.append(1))
    scores = dict(evaluator.evaluate(model))
    assert len(passes) == 2, (
        "one batch of training samples and one of test samples, for features and embeddings together"
    )
    assert scores["acc1_cache_shots2"] == 1
    assert scores["acc1_shots1"] == plain["acc1_shots1"]
    assert not [name for name in plain if "cache" in name]
    assert evaluator.facts()["classnames"] == NAMES
    (tmp_path / "classnames.txt").write_text("\n".join(reversed(NAMES)))
    with pytest.raises(DataError, match="the same names in another order"):
        list(cached.build(modalities()).evaluate(knowing_model()))
    model = knowing_model()
    del model.heads["words"]
    with pytest.raises(ValueError, match="no shared space for 'words'"):
        list(cached.build(modalities()).evaluate(model))
