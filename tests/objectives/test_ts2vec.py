"""TS2Vec: crops share what they should, tokens of equal times are compared, and other grids are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.encoders.series_conv import SeriesConvConfig
from mmssl.losses.ts2vec import loss_of_equal
from mmssl.objectives.ts2vec import Ts2VecConfig, Ts2VecObjective, draw_crops
from tests.contracts import toys
from tests.contracts.case import SIZE, Case

CONFIG: dict[str, Any] = {"kind": "ts2vec", "modality": "pulse", "view": "wave", "mask": "spread"}
_FIRST, _SECOND = draw_crops(toys.TOKENS, StepContext({}).generator("ts2vec"))
SHARED = _FIRST[1] - _SECOND[0]
"""Tokens that the crops of the first step share."""
CASES = {
    "ts2vec": Case(json.dumps(CONFIG), Reduction.GATHER, {"ts2vec": loss_of_equal(SIZE, SHARED)}),
    "ts2vec, absent": Case(
        json.dumps(CONFIG), Reduction.GATHER, {"ts2vec": loss_of_equal(5, SHARED)}, {"pulse": (1, 4, 6)}
    ),
}


def build(encoder: Any) -> Ts2VecObjective:
    return Ts2VecConfig.model_validate_json(json.dumps(CONFIG)).build({"pulse": encoder}, Plan.unknown())


def test_crops_overlap_and_cover_every_length() -> None:
    random, seen = torch.Generator().manual_seed(0), set()
    for _ in range(2000):
        (start, right), (left, stop) = draw_crops(8, random)
        assert 0 <= start <= left < right <= stop <= 8
        seen.add((right - left, start == left, right == stop))
    assert {shared for shared, _, _ in seen} == set(range(2, 9))
    assert {(2, False, False), (2, True, True), (8, True, True)} <= seen
    assert draw_crops(2, random) == ((0, 2), (0, 2))


def test_tokens_of_equal_times_are_compared() -> None:
    """An encoder without context: without masks both crops have equal tokens, those of the shared times."""
    config = SeriesConvConfig(channels=2, rate=32, seconds=1.0, stride=2, hidden=8, depth=1, width=8, dropout=0.0)
    encoder = config.build()
    for block in encoder.blocks:
        for layer in (block.conv1, block.conv2):
            torch.nn.init.zeros_(layer.weight[:, :, 0])
            torch.nn.init.zeros_(layer.weight[:, :, 2])
    objective = build(encoder)
    wave = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(3, 16, dtype=torch.bool)
    batch = Batch({"pulse": {"wave0": wave, "spread0": none, "spread1": none}}, torch.arange(3))
    whole = encoder(wave).tokens
    lengths = set()
    for step in range(20):
        ctx = StepContext({"pulse": encoder}, step=step)
        latents = objective.encode(batch, ctx)
        first, second = draw_crops(16, ctx.generator("ts2vec"))
        torch.testing.assert_close(latents["0"], latents["1"])
        torch.testing.assert_close(latents["0"], whole[:, second[0] : first[1]])
        lengths.add(latents["0"].shape[1])
    assert len(lengths) > 5  # each step draws its own crops
    masked = Batch({"pulse": {"wave0": wave, "spread0": none, "spread1": ~none}}, torch.arange(3))
    latents = objective.encode(masked, StepContext({"pulse": encoder}))
    assert (latents["1"] == latents["1"][:1, :1]).all()  # of zeros: all times are alike
    assert not torch.allclose(latents["0"], latents["1"])


def test_the_loss_of_a_collapsed_encoder_is_logged() -> None:
    encoder = toys.Pulses()
    learner = Learner({"pulse": encoder}, build(encoder))
    batch = Batch(toys.batch(5).views, torch.arange(5))
    out, latents = learner(batch)
    assert float(out.metrics["chance_loss"]) == pytest.approx(loss_of_equal(5, latents["0"].shape[1]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoders\.pulse has the grid \(4, 4\): use one of kind series_conv"):
        build(toys.Patches())
    objective, whole = build(toys.Pulses()), toys.batch(3)
    views = {**whole.views["pulse"], "spread0": whole.views["pulse"]["spread0"][:, :9]}
    with pytest.raises(ValueError, match=r"masks \[B, 16\], the encoder's number of tokens: set `tokens` of 'spread'"):
        objective.check_views(Batch({"pulse": views}, whole.index), StepContext({}))
