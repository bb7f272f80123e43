"""Class probabilities: known temperatures are found, measures are those of slow loops, and the evaluator says them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.evaluation.calibration_error import BINS, random_halves
from mmssl.evaluation.labelled.temperature import LIMITS, class_calibration, fit_temperature
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from tests.evaluation.world import NAMES, colour_shards, configured, knowing_model, modalities

CLASSES = 5


def drawn(n: int) -> tuple[Tensor, Tensor]:
    """Logits [n, K], and labels that are drawn with the probabilities of their softmax: perfectly calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(n, CLASSES, generator=generator)
    return logits, logits.softmax(1).multinomial(1, generator=generator)[:, 0]


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """The slow loop, over samples and classes."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[label]
    return total / len(labels)


def errors(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Expected calibration error and Brier score, as slow loops."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    brier = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        whole = sum(math.exp(value) for value in row)
        every = [math.exp(value) / whole for value in row]
        brier += sum((p - (k == label)) ** 2 for k, p in enumerate(every))
        best = max(every)
        bins[min(int(best * BINS), BINS - 1)].append((best, every.index(best) == label))
    gaps = (abs(sum(p for p, _ in one) - sum(right for _, right in one)) for one in bins)
    return sum(gaps) / len(labels), brier / len(labels)


def test_calibrated_logits_have_temperature_one_and_doubled_ones_two() -> None:
    logits, labels = drawn(20000)
    found = fit_temperature(logits, torch.eye(CLASSES), labels, 1.0)
    assert found == pytest.approx(1, abs=0.04)
    assert fit_temperature(2 * logits, torch.eye(CLASSES), labels, 1.0) == pytest.approx(2 * found, rel=1e-5)
    assert fit_temperature(logits, torch.eye(CLASSES), labels, 2.0) == pytest.approx(2 * found, rel=1e-5)


def test_the_temperature_has_the_least_negative_log_likelihood() -> None:
    logits, labels = drawn(200)
    found = fit_temperature(3 * logits, torch.eye(CLASSES), labels, 1.0)
    at, below, above = (negative_log_likelihood(3 * logits / (found * near), labels) for near in (1, 0.97, 1.03))
    assert at < min(below, above)


@pytest.mark.parametrize(("sign", "bound"), [(1, LIMITS[0]), (-1, LIMITS[1])])
def test_a_temperature_without_a_least_likelihood_stops_at_its_limit(sign: int, bound: float) -> None:
    labels = torch.arange(20) % CLASSES
    assert fit_temperature(sign * torch.eye(CLASSES)[labels], torch.eye(CLASSES), labels, 1.0) == bound


def test_measures_are_the_slow_loops_of_the_other_half() -> None:
    logits, labels = drawn(301)
    scores, table = class_calibration(0.02 * logits, torch.eye(CLASSES), labels, 90.0)
    _, other = random_halves(301, 0, "class_calibration")
    temperature = scores["temperature"]
    assert isinstance(temperature, float)
    assert (scores["n_fitted"], scores["ece_n"], scores["logit_scale"]) == (150, 151, 90)
    for suffix, scale in (("", 90.0), ("_calibrated", 90.0 / temperature), ("_scale100", 100.0)):
        part = scale * 0.02 * logits[other].double()
        ece, brier = errors(part, labels[other])
        expected = {"ece": ece, "nll": negative_log_likelihood(part, labels[other]), "brier": brier}
        for name, value in expected.items():
            assert scores[f"{name}{suffix}"] == pytest.approx(value, rel=1e-4)
            low, high = (scores[f"{name}{suffix}_ci95_{end}"] for end in ("low", "high"))
            assert low < value < high  # type: ignore[operator]
        chance = negative_log_likelihood(torch.zeros(1, CLASSES), labels[:1])
        assert scores[f"nll{suffix}_chance"] == pytest.approx(chance)
        assert scores[f"brier{suffix}_chance"] == pytest.approx(errors(torch.zeros(1, CLASSES), labels[:1])[1])
    rows = [dict(zip(table.columns, row, strict=True)) for row in zip(*table.columns.values(), strict=True)]
    for name, suffix in (("before", ""), ("after", "_calibrated"), ("scale100", "_scale100")):
        curve = [row for row in rows if row["probabilities"] == name]
        assert sum(row["n"] for row in curve) == 151  # type: ignore[misc]
        gaps = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in curve)  # type: ignore[misc, operator]
        assert gaps / 151 == pytest.approx(scores[f"ece{suffix}"])
        for row in curve:
            assert row["from"] <= row["confidence"] <= row["to"]  # type: ignore[operator]
            assert row["accuracy_ci95_low"] <= row["accuracy"] <= row["accuracy_ci95_high"]  # type: ignore[operator]


def test_scaling_mends_probabilities_that_are_too_sure() -> None:
    logits, labels = drawn(4000)
    scores, _ = class_calibration(4 * logits, torch.eye(CLASSES), labels, 1.0)
    assert scores["temperature"] == pytest.approx(4, rel=0.15)
    assert scores["ece"] > 0.1 > 0.04 > scores["ece_calibrated"]  # type: ignore[operator]
    for name in ("nll", "brier"):
        assert scores[f"{name}_calibrated"] < scores[name]  # type: ignore[operator]


def test_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="number of samples with a label: got 3, wanted four or more"):
        class_calibration(torch.eye(3), torch.eye(3), torch.arange(3), None)


@pytest.mark.parametrize("average", [{}, {"picture": "flip"}])
def test_the_evaluator_takes_the_models_own_scale(tmp_path: Path, average: dict[str, str]) -> None:
    common = {"shards": colour_shards(tmp_path, 16), "modality": "picture", "prompts": "words", "classnames": NAMES}
    evaluator = configured(ZeroShotConfig, **common, calibration=True, average=average).build(modalities())
    assert evaluator.headlines == ("acc1", "ece", "ece_calibrated")
    model = knowing_model()
    scores = dict(evaluator.evaluate(model))
    assert (scores["n"], scores["n_fitted"], scores["ece_n"]) == (13, 6, 7)
    assert {"before", "after", "scale100"} == {*evaluator.tables["reliability"].columns["probabilities"]}
    assert (scores["logit_scale"], scores["ece"]) == (100, scores["ece_scale100"])
    model.logit_scales = {("words", "picture"): 2.0}
    own = dict(evaluator.evaluate(model))
    assert (own["logit_scale"], own["ece_scale100"]) == (2, scores["ece_scale100"])
    assert own["ece"] > scores["ece"]
    assert "ece" not in dict(configured(ZeroShotConfig, **common).build(modalities()).evaluate(model))
