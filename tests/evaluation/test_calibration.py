"""Calibration: probabilities that hold on the other half, thresholds that keep their rates, known models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.evaluation.calibration import (
    Calibration,
    CalibrationConfig,
    Pairs,
    calibrate,
    from_json,
    probability_scores,
    to_json,
)
from tests.evaluation.world import collected, configured, items


def run(image: Tensor, text: Tensor, **values: Any) -> tuple[dict[str, Any], Calibration]:
    config = configured(CalibrationConfig, **{"shards": ["x"], "pair": ["image", "text"], "resamples": 100, **values})
    return calibrate(collected(len(image), image=items(image), text=items(text)), config)


@pytest.fixture(scope="module")
def embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(6000, 16, generator=generator), dim=1)
    text = F.normalize(image + 0.35 * torch.randn(6000, 16, generator=generator), dim=1)
    return image, text


def test_probabilities_hold_on_the_other_half(embeddings: tuple[Tensor, Tensor]) -> None:
    scores, calibration = run(*embeddings)
    assert scores["ece"] <= 0.02
    assert scores["ece_cosine"] > 5 * scores["ece"]
    assert scores["brier"] < scores["brier_chance"] / 2
    assert (scores["n"], scores["ece_n"], scores["accept@0.1_n"]) == (6000, 3000, 3000)
    for rate in (0.1, 0.01, 0.001):
        low, high = (scores[f"false_accept@{rate:g}_ci95_{end}"] for end in ("low", "high"))
        assert scores[f"false_accept@{rate:g}"] == pytest.approx(rate, rel=0.5)
        assert low <= scores[f"false_accept@{rate:g}"] <= high
        assert scores[f"false_accept@{rate:g}_chance"] == scores[f"accept@{rate:g}_chance"] == rate
    assert scores["accept@0.1"] > scores["accept@0.001"] > 0.001
    for name, wide in (("ece", 0.02), ("AUROC", 0.02), ("brier", 0.02), ("ece_cosine", 0.04)):
        low, high = scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"]
        assert low < scores[name] < high < low + wide
    asked = calibration(torch.tensor([[-1.0, 0.5], [0.9, 1.0]]))
    assert asked.flatten().tolist() == sorted(asked.flatten().tolist())


def test_a_rarer_match_is_less_probable(embeddings: tuple[Tensor, Tensor]) -> None:
    """The odds of a pair are multiplied by those of the prior: a fit at 0.1 is a fit at 0.5 that is asked at 0.1."""
    _, even = run(*embeddings)
    _, rare = run(*embeddings, prior=0.1)
    cosines = torch.linspace(0, 1, 50)
    torch.testing.assert_close(even(cosines, 0.1), rare(cosines), atol=0.02, rtol=0)
    assert bool((even(cosines, 0.1) <= even(cosines)).all())


def test_a_collapsed_model_knows_the_prior_alone() -> None:
    point = F.normalize(torch.ones(100, 4), dim=1)
    scores, calibration = run(point, point, prior=0.3, negatives=3)
    assert (scores["AUROC"], scores["ece"]) == (0.5, pytest.approx(0, abs=1e-6))
    assert float(calibration(torch.tensor(1.0))) == pytest.approx(0.3)
    assert scores["accept@0.1"] == scores["false_accept@0.1"] == 0


def test_a_perfect_model_accepts_all_matches() -> None:
    scores, _ = run(torch.eye(40), torch.eye(40))
    assert (scores["AUROC"], scores["accept@0.001"], scores["false_accept@0.001"], scores["ece"]) == (1, 1, 0, 0)


def test_intervals_of_the_error_narrow_with_the_samples(embeddings: tuple[Tensor, Tensor]) -> None:
    """Four times the samples, half the width, as far as 400 draws tell."""
    widths = []
    for n in (1000, 4000):
        scores, _ = run(*(x[:n] for x in embeddings), resamples=400)
        names = ("ece", "AUROC", "brier")
        widths.append([scores[f"{name}_ci95_high"] - scores[f"{name}_ci95_low"] for name in names])
    for few, many in zip(*widths, strict=True):
        assert 0.3 < many / few < 0.8


def test_the_interval_of_the_brier_score_is_that_of_a_bootstrap_over_samples() -> None:
    """Each draw has other numbers of right and wrong pairs, and the prior weighs their means."""
    probabilities, truth = torch.rand(900, generator=torch.Generator().manual_seed(0)).numpy(), np.arange(900) % 3 == 0
    owner = np.arange(900) // 9
    drawn, values = np.random.default_rng(0), []
    squared = (probabilities - truth) ** 2
    for _ in range(2000):
        often = np.bincount(drawn.integers(100, size=100), minlength=100)[owner]
        means = [np.average(squared[kind], weights=often[kind]) for kind in (truth, ~truth)]
        values.append(0.2 * means[0] + 0.8 * means[1])
    pairs = Pairs(torch.from_numpy(probabilities), torch.from_numpy(truth), torch.from_numpy(owner))
    config = configured(CalibrationConfig, shards=["x"], pair=["image", "text"], prior=0.2, resamples=100)
    scores = probability_scores(probabilities, pairs, config)
    assert scores["brier"] == pytest.approx(0.2 * squared[truth].mean() + 0.8 * squared[~truth].mean())
    found = [scores[f"brier_ci95_{end}"] for end in ("low", "high")]
    assert found == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.003)
    assert scores["brier_n"] == 100


def test_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="3 samples have both 'image' and 'text', of 3: wanted four or more"):
        run(torch.eye(3), torch.eye(3))


def test_a_calibration_survives_its_file_and_a_damaged_one_is_refused() -> None:
    calibration = Calibration(0.5, (0.1, 0.4), (0.0, 1.0))
    assert from_json(to_json(calibration)) == calibration
    for bad in ({"prior": 0.5}, {**to_json(calibration), "cosines": [0.4, 0.1]}, {**to_json(calibration), "prior": 2}):
        with pytest.raises(ValueError, match="calibration"):
            from_json(bad)
