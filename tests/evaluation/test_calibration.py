"""Calibration: probabilities that hold on the other half, thresholds that keep their rates, known models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.evaluation.calibration import Calibration, CalibrationConfig, calibrate, from_json, to_json
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
    for rate in (0.1, 0.01, 0.001):
        low, high = (scores[f"false_accept@{rate:g}_ci95_{end}"] for end in ("low", "high"))
        assert scores[f"false_accept@{rate:g}"] == pytest.approx(rate, rel=0.5)
        assert low <= scores[f"false_accept@{rate:g}"] <= high
    assert scores["accept@0.1"] > scores["accept@0.001"] > 0.001
    for name, wide in (("ece", 0.02), ("AUROC", 0.02)):
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
        widths.append([scores[f"{name}_ci95_high"] - scores[f"{name}_ci95_low"] for name in ("ece", "AUROC")])
    for few, many in zip(*widths, strict=True):
        assert 0.3 < many / few < 0.8


def test_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="3 samples have both 'image' and 'text', of 3: wanted four or more"):
        run(torch.eye(3), torch.eye(3))


def test_a_calibration_survives_its_file_and_a_damaged_one_is_refused() -> None:
    calibration = Calibration(0.5, (0.1, 0.4), (0.0, 1.0))
    assert from_json(to_json(calibration)) == calibration
    for bad in ({"prior": 0.5}, {**to_json(calibration), "cosines": [0.4, 0.1]}, {**to_json(calibration), "prior": 2}):
        with pytest.raises(ValueError, match="calibration"):
            from_json(bad)
