"""No step reads a value from the device: on the meta device, which has none to read, all of it runs.

Samples that lack a modality are an exception: their rows are selected, so that shapes depend on the data. Others: `READS`.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from mmssl.core.context import StepContext
from mmssl.core.errors import RecipeError
from mmssl.heads.queue import Queue
from mmssl.training.run import StepConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStepConfig
from mmssl.training.steps.plain import AccumulatedStepConfig, PlainStepConfig
from tests.contracts.test_objectives import CASES, batch, build

STEPS: list[StepConfig] = [
    PlainStepConfig(),
    AccumulatedStepConfig(micro_batches=2),
    CachedStepConfig(micro_batches=2),
]
READS = {
    "jepa": "the number of places of its masks, which must be one",
    "wav2vec2": "the number of tokens of its masks, which must be one",
    "masked_prediction": "which tokens are masked: the head predicts those alone",
}
"""Objectives whose shapes depend on the data: what they read, once a step."""
# One of each kind, and what has code of its own.
SOME = [
    name for name, case in CASES.items() if not case.absent and ("," not in name or name.endswith(("tiles", "queue")))
]


@pytest.fixture(scope="module")
def launch() -> Launch:
    return Launch("fp32", "cpu")


@pytest.mark.parametrize("name", [name for name in SOME if name not in READS])
def test_nothing_is_read_from_the_device(name: str, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # it does not know the meta device, nor do generators
    shared = StepContext.generator
    monkeypatch.setattr(StepContext, "generator", lambda *a: shared(*a) if a[2:] in ((), ("cpu",)) else None)
    ran = 0
    for config in STEPS:
        learner = build(name)
        whole = batch(learner).to("meta")
        for module in learner.modules():
            if isinstance(module, Queue):
                module.steps.zero_()
                assert module.is_full()
        learner.to("meta").train()
        try:
            step = config.build(learner, learner, launch, 0, 1.0)
        except RecipeError:  # this step is wrong for this objective
            continue
        output, latents = step.gradients(whole, 5, 10)
        flags = step._flags(output, step._norms(), (False, True))
        with torch.no_grad():
            learner.after_update(latents | output.kept, learner.context(5, 10), flags[0])
        step._before.restore(flags[0])
        ran += 1
    assert ran >= 2  # plain, and what gives the gradient of large batches
