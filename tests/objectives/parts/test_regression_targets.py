"""Targets of layers against golden values and a loop over tokens, with the error of pooled features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.core.context import StepContext
from mmssl.core.encoder import Features
from mmssl.core.plan import Plan
from mmssl.objectives.parts.latent_targets import Predicted
from mmssl.objectives.parts.regression_targets import LastLayerConfig, LayerTargetsConfig, RegressionTargets
from tests.contracts import toys
from tests.losses.test_latent_prediction import IJEPA, LAYERS, MASK, PREDICTION, random

SETTINGS: dict[str, Any] = {"layers": 2, "norm": "instance", "norm_mean": True, "over_features": "sqrt"}


def build(beta: float | None = None, **changes: Any) -> RegressionTargets:
    config = LayerTargetsConfig(**SETTINGS | changes)
    return config.build(toys.Patches(), "picture", beta, lambda _: 0.9, Plan.unknown())


def features(layers: list[Tensor]) -> Features:
    return Features(layers[-1].mean(1), layers[-1], None, tuple(layers))


@pytest.mark.parametrize(
    ("norm", "norm_mean", "beta", "over", "value"),
    [
        ("instance", False, None, "sqrt", 1.8487886671727676),  # data2vec_audio_l2
        ("layer", True, 2.0, "mean", 0.3391974731844),  # data2vec_vision_smooth_l1_beta2
    ],
)
def test_golden_values_of_layers(norm: str, norm_mean: bool, beta: float | None, over: str, value: float) -> None:
    """Of ssl-golden-values-2.json: means over the six hidden tokens of all samples, which have one to three each."""
    targets = build(beta, norm=norm, norm_mean=norm_mean, over_features=over)
    whole = targets.of(features(LAYERS))
    total = 0.0
    for row, mask in enumerate(MASK):
        given = (x[None, row : row + 1, mask] for x in (PREDICTION, whole))
        total += targets.encode([Predicted(*given, random(1, 1, 6))], None)["error"].item() * int(mask.sum())
    assert total / 6 == pytest.approx(value, rel=1e-12)


def test_golden_value_of_the_last_layer() -> None:
    targets = LastLayerConfig().build(toys.Patches(), "picture", 1.0, lambda _: 0.9, Plan.unknown())
    whole = targets.of(features([LAYERS[0]]))
    given = (x[None, :, [1, 2, 4]] for x in (PREDICTION, whole))
    found = targets.encode([Predicted(*given, random(1, 3, 6))], whole)["error"]
    assert found.mean().item() == pytest.approx(IJEPA, rel=1e-13)


def loop(layers: list[Tensor], predicted: list[Predicted], weight: float) -> tuple[float, float]:
    """Errors of data2vec 2.0 number by number: of hidden tokens, and of pooled features against the mean of the targets."""

    def normed(values: list[float]) -> list[float]:
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        return [(v - mean) / deviation for v in values]

    B, T, D = layers[0].shape
    tokens, pooled = [], []
    for b in range(B):
        columns = [[normed(layer[b, :, d].tolist()) for d in range(D)] for layer in layers]
        average = [[sum(c[d][t] for c in columns) / len(layers) for d in range(D)] for t in range(T)]
        y = [normed(row) for row in average]
        mean = [sum(y[t][d] for t in range(T)) / T for d in range(D)]
        for one in predicted:
            for draw in range(len(one.tokens)):
                hidden = zip(one.tokens[draw, b].tolist(), one.targets[draw, b].tolist(), strict=True)
                errors = [sum((p - q) ** 2 for p, q in zip(*pair, strict=True)) / math.sqrt(D) for pair in hidden]
                tokens.append(sum(errors) / len(errors))
                pairs = zip(one.pooled[draw, b].tolist(), mean, strict=True)
                pooled.append(sum((p - q) ** 2 for p, q in pairs) / math.sqrt(D))
    return sum(tokens) / len(tokens), weight * sum(pooled) / len(pooled)


def test_errors_of_draws_and_of_pooled_features_are_those_of_a_loop() -> None:
    targets = build(pooled=0.3)
    layers = [3 * random(3, 5, 6, seed=k) + k for k in range(2)]
    whole = targets.of(features(layers))
    predicted = []
    for seed, hidden in ((3, [1, 4]), (4, [0, 2, 3])):  # two kinds of masks, two draws of each
        wanted = torch.stack([whole[:, hidden], whole[:, [h - 1 for h in hidden]]])
        predicted.append(Predicted(random(2, 3, len(hidden), 6, seed=seed), wanted, random(2, 3, 6, seed=seed + 2)))
    latents = targets.encode(predicted, whole)
    out = targets.criterion(latents, StepContext({}))
    tokens, pooled = loop(layers, predicted, 0.3)
    assert out.terms["jepa"].item() == pytest.approx(tokens, rel=1e-10)
    assert out.terms["pooled"].item() == pytest.approx(pooled, rel=1e-10)
    assert latents["targets"].tolist() == [10, 10, 10]
    everything = torch.cat([one.targets.transpose(0, 1).flatten(1, 2) for one in predicted], 1).flatten(0, 1)
    torch.testing.assert_close(out.metrics["target_std"], everything.std(0).mean())


def test_the_error_of_predicting_the_mean_is_analytic() -> None:
    """A normalised target of D features has the squared length D: predicting 0 costs sqrt(D), and the very mean nothing."""
    targets = build(pooled=1.0)
    layers = [random(2, 40, 16, seed=k) for k in range(2)]
    whole = targets.of(features(layers))
    exact = Predicted(torch.zeros(1, 2, 40, 16, dtype=torch.float64), whole[None], whole.mean(1)[None])
    found = targets.encode([exact], whole)
    assert found["error"].tolist() == pytest.approx([4.0] * 2, rel=1e-4)
    assert found["pooled_error"].tolist() == [0, 0]
