"""What makes a step fast changes no gradient: beside the whole computation, in each kind of step, on two processes too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders import text_transformer
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.transformer import Transformer
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStepConfig
from mmssl.training.steps.plain import PlainStepConfig
from tests.distributed.processes import Processes

LENGTHS = [9, 2, 20, 9, 13, 2, 7, 16]
STEPS = {"plain": PlainStepConfig(), "cached": CachedStepConfig(micro_batches=3)}


class Tokens(torch.nn.Module):
    """An encoder of which everything is computed, whoever asks for what."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.capabilities, self.width = encoder.capabilities, encoder.width

    def forward(self, x: Tensor, *, pooled_only: bool = False) -> Any:
        return self.encoder(x)


def learner(whole: bool = False) -> Learner:
    """CLIP of two small transformers in float64, with dropped branches; with `whole`, of encoders that leave out nothing."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2, "drop_path": 0.4}
    encoders: dict[str, Any] = {
        "image": VisionTransformerConfig(size=16, patch_size=8, **size).build(),
        "text": TextTransformerConfig(vocab_size=40, context_length=20, **size).build(),
    }
    views = {"image": "crop", "text": "tokens"}
    objective = ClipConfig(pairs=(("image", "text"),), views=views, embedding=8, temperature=0.07).build(
        encoders, Plan.unknown()
    )
    if whole:
        encoders = {name: Tokens(encoder) for name, encoder in encoders.items()}
    return Learner(encoders, objective).double().train()


def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 39, (len(LENGTHS), 20), generator=random)
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1] = 39
        ids[row, length:] = 0
    pictures = torch.rand(len(LENGTHS), 3, 16, 16, generator=random, dtype=torch.float64)
    return Batch({"image": {"crop0": pictures}, "text": {"tokens0": ids}}, torch.arange(len(LENGTHS)))


def gradients(model: Learner, data: Batch, kind: str) -> dict[str, Tensor]:
    """Loss and gradients, by names without that of the wrapper."""
    launch = Launch(device="cpu")
    torch.manual_seed(2)
    output, _ = STEPS[kind].build(model, launch.wrap(model), launch, 3, None).gradients(data, 0, 1)
    found = {name.replace(".encoder.", "."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.total, **found}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_has_the_gradients_of_the_whole_computation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = gradients(learner(), batch(), kind)
    assert len(fast) == 1 + len(list(learner().parameters()))
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    torch.testing.assert_close(fast, gradients(learner(whole=True), batch(), kind), atol=1e-12, rtol=1e-10)


def still(kind: str) -> dict[str, Tensor]:
    """Gradients of this process' share, averaged over processes, without dropped branches."""
    model, data = learner(), batch()
    for module in model.modules():
        if isinstance(module, Transformer):
            for block in module:
                block.drop_path.rate = 0.0
    share = len(data) // distributed.world_size()
    return gradients(model, data.rows(distributed.rank() * share, (distributed.rank() + 1) * share), kind)


@pytest.mark.parametrize("kind", STEPS)
def test_two_processes_have_the_gradients_of_one(kind: str, two_processes: Processes) -> None:
    alone = still(kind)
    first, second = two_processes.run(still, [(kind,), (kind,)])
    alone.pop("loss"), first.pop("loss"), second.pop("loss")
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.testing.assert_close(first, alone, atol=1e-12, rtol=1e-10)
