"""Steps of every objective and scores of every evaluator on a pretended CUDA device are those on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.evaluation import tiles
from mmssl.training.run import StepConfig
from mmssl.training.runtime.launch import Launch
from tests.contracts import test_evaluators as evaluators
from tests.contracts.test_evaluators import shards as shards
from tests.contracts.test_no_waiting import SOME, STEPS
from tests.contracts.test_objectives import BASIC, CASES, batch, build
from tests.pretended.cuda import pretended_cuda

KINDS = {config.kind: config for config in STEPS}
QUICK = {"calibration", "class_retrieval", "few_shot", "knn"}
"""Evaluators that run with the default tests."""


def _every_step() -> Iterator[Any]:
    """Plain steps of the first case of each objective, and all steps of one; the others are slow."""
    for name in CASES:
        for kind in KINDS:
            quick = name in BASIC & set(SOME) and (kind == "plain" or name == "clip")
            yield pytest.param(name, kind, marks=() if quick else pytest.mark.slow)


def trained(name: str, config: StepConfig, device: str) -> dict[str, Tensor]:
    """Logged figures of two steps, and the state after them."""
    found: dict[str, Tensor] = {}
    learner = build(name).to(device).train()
    launch = Launch("fp32", device)
    step = config.build(learner, learner, launch, 0, 1.0)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.01, fused=True)
    for number in range(2):
        _refresh(learner, device)
        state: Any = SimpleNamespace(learner=learner, optimizer=optimizer, step=number, total_steps=4)
        report = step(state, batch(learner, seed=number).to(device))
        assert report.finite
        scalars = report.scalars()
        learner.objective.headline(scalars)
        found |= {f"{key} of step {number}": torch.tensor(value) for key, value in scalars.items()}
    held = learner.state_dict()
    assert {x.device.type for x in held.values()} == {device}
    return found | {key: x.cpu() for key, x in held.items()}


def _refresh(learner: Learner, device: str) -> None:
    if learner.objective.refresh_every() is not None:
        learner.eval()
        with torch.no_grad():
            learner.objective.refresh([*batch(learner).to(device).chunks(3)], learner.context(0, 4))
        learner.train()


@pytest.mark.parametrize(("name", "kind"), _every_step())
def test_two_steps_give_what_the_cpu_gives(name: str, kind: str) -> None:
    config = KINDS[kind]
    try:
        expected = trained(name, config, "cpu")
    except RecipeError as error:
        pytest.skip(f"this step is wrong for this objective: {error}")
    with pretended_cuda(deterministic=True):
        found = trained(name, config, "cuda")
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-6, msg=lambda why, key=key: f"{key}: {why}")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in evaluators.CASES]
)
def test_scores_are_those_of_the_cpu(
    kind: str, shards: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiles.TILE, "cuda", tiles.TILE["cpu"])  # a CPU multiplies them
    given, train = shards("lacking", evaluators.lacking), shards("train", lambda: evaluators.whole(9))
    scores = []
    for device, context in (("cpu", nullcontext()), ("cuda", pretended_cuda())):
        with context:
            scores.append(dict(evaluators.built(kind, given, train).evaluate(evaluators.model().to(device))))
    assert scores[1] == pytest.approx(scores[0], abs=1e-5, nan_ok=True)
