"""CPC: parts are encoded alone, contexts know the past only, learning of a rhythm, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.cpc import CpcConfig, CpcObjective
from tests.contracts import toys
from tests.contracts.case import SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "cpc", "modality": "pulse", "view": "wave", "axis": 1, "parts": 4, "steps": 2, "context": 8, "embedding": 6,
}  # fmt: skip
TEXTS = CONFIG | {"modality": "sentence", "view": "parts", "axis": 0, "single": True}
FIVE = {"pulse": (1, 4, 6)}
CASES = {
    "cpc": Case(json.dumps(CONFIG), Reduction.GATHER, {"cpc": math.log(4 * SIZE)}),
    "cpc, absent": Case(json.dumps(CONFIG), Reduction.GATHER, {"cpc": math.log(4 * 5)}, FIVE),
    "cpc, texts": Case(json.dumps(TEXTS), Reduction.GATHER, {"cpc": math.log(4 * SIZE)}),
}


def build(**changes: Any) -> tuple[Learner, CpcObjective]:
    torch.manual_seed(0)
    encoder = toys.Pulses()
    objective = CpcConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"pulse": encoder}, Plan.unknown())
    return Learner({"pulse": encoder}, objective), objective


def waves(x: Tensor) -> Batch:
    return Batch({"pulse": {"wave0": x}}, torch.arange(len(x)))


def test_features_know_their_part_and_predictions_the_past() -> None:
    learner, _ = build()
    x = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 8:16] += 1  # the second of four parts
    before, after = (learner.objective.encode(waves(given), learner.context()) for given in (x, changed))
    same = [(before["features"][:, t] == after["features"][:, t]).all().item() for t in range(4)]
    assert same == [True, False, True, True]
    same = [(before["predicted"][:, t] == after["predicted"][:, t]).all().item() for t in range(2)]
    assert same == [True, False]
    assert before["predicted"].shape == (3, 2, 2, 6)


def test_frames_of_clips_go_through_an_encoder_of_pictures() -> None:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = CONFIG | {"modality": "picture", "view": "clip", "axis": 0, "single": True}
    objective = CpcConfig.model_validate_json(json.dumps(config)).build({"picture": encoder}, Plan.unknown())
    learner = Learner({"picture": encoder}, objective)
    clips = torch.randint(0, 256, (3, 4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = objective.encode(Batch({"picture": {"clip0": clips}}, torch.arange(3)), learner.context())["features"]
    for time in range(4):
        torch.testing.assert_close(found[:, time], objective.project(encoder(clips[:, time]).pooled))
    with pytest.raises(ValueError, match=r"with time on axis 0, wanted 4 times, one for each of the parts"):
        objective.check_views(
            Batch({"picture": {"clip0": clips.repeat(1, 2, 1, 1, 1)}}, torch.arange(3)), learner.context()
        )


def test_what_follows_is_learned() -> None:
    """Each series has a tone of its own in all parts: the next part is found among those of all series."""
    learner, _ = build()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    time, tones = torch.arange(32), torch.linspace(0.3, 1.6, 6)
    for step in range(60):
        phase = 6.3 * torch.rand(6, 1, generator=torch.Generator().manual_seed(step))
        x = torch.stack([torch.sin(tones[:, None] * time + phase), tones[:, None].expand(-1, 32)], 1)
        out, _ = learner(waves(x), step, 60)
        optimizer.zero_grad(), out.total.backward(), optimizer.step()
    assert out.metrics["chance_loss"].item() == pytest.approx(math.log(24))
    assert out.total < math.log(24) - 0.4


def test_views_that_cannot_be_cut_are_refused() -> None:
    learner, objective = build(parts=5, steps=1)
    with pytest.raises(ValueError, match=r"cpc: got views \[3, 2, 32\] with time on axis 1, wanted a multiple of 5"):
        objective.check_views(waves(torch.zeros(3, 2, 32)), learner.context())
    with pytest.raises(ValidationError, match="steps: got 4, wanted at most 3: less than parts"):
        build(steps=4)
