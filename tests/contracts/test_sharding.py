"""Weights split over two processes, for every registered objective: the gradients of one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.encoder import freeze
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.lora import LoraConfig, add_lora
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStep
from mmssl.training.steps.plain import PlainStep
from tests.contracts.test_objectives import (
    BASIC,
    SIZE,
    batch,
    build,
    error,
    expected_gradients,
    others_slow,
    refresh,
    representative,
    whole_gradients,
)
from tests.distributed.processes import Processes

SEED, STEP, TOTAL = 5, 2, 10


def split_gradients(learner: Learner, whole: Batch, how: str) -> dict[str, Tensor]:
    """Gradients of this process' rows, averaged, and whole again."""
    launch = Launch(device="cpu", parallel=how if how in ("zero2", "ddp") else "fsdp2")  # type: ignore[arg-type]
    launch.place(learner)
    refresh(learner, 0)
    wrapped = launch.wrap(learner)
    assert any(isinstance(p, DTensor) for p in learner.parameters()) == (how != "ddp")
    share = len(whole) // distributed.world_size()
    mine = whole.rows(distributed.rank() * share, (distributed.rank() + 1) * share)
    step = (
        CachedStep(learner, wrapped, launch, SEED, micro_batches=2)
        if how == "cached"
        else PlainStep(learner, wrapped, launch, SEED)
    )
    step.gradients(mine, STEP, TOTAL)
    launch.finish(learner)
    found = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        found[name] = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
    return found


def of_objective(name: str, how: str) -> dict[str, Tensor]:
    learner = build(name, seed=distributed.rank())
    return split_gradients(learner, batch(learner), how)


@pytest.mark.parametrize("how", ["fsdp2", "cached"])
@representative
def test_two_processes_are_one(two_processes: Processes, name: str, how: str) -> None:
    assert_one(two_processes, name, how)


@others_slow(BASIC)
def test_two_processes_that_keep_gathered_weights_are_one(two_processes: Processes, name: str) -> None:
    assert_one(two_processes, name, "zero2")


def assert_one(two_processes: Processes, name: str, how: str) -> None:
    expected = expected_gradients(name, STEP, TOTAL)
    for answer in two_processes.run(of_objective, [(name, how)] * 2):
        assert error(answer, expected) < 1e-10


def real(checkpointing: bool) -> tuple[Learner, Batch]:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 32, "depth": 3, "heads": 2, "checkpointing": checkpointing}
    encoders = {
        "image": VisionTransformerConfig(size=16, patch_size=8, **shape).build(),
        "text": TextTransformerConfig(vocab_size=20, context_length=8, **shape).build(),
    }
    views = {"image": "crop", "text": "tokens"}
    objective = ClipConfig(pairs=(("image", "text"),), views=views, embedding=8, temperature=0.07)
    words = torch.randint(1, 18, (SIZE, 8))
    words[:, 5] = 19
    pictures = torch.randint(0, 256, (SIZE, 3, 16, 16), dtype=torch.uint8)
    whole = Batch({"image": {"crop0": pictures}, "text": {"tokens0": words}}, torch.arange(SIZE))
    return Learner(encoders, objective.build(encoders, Plan.unknown())), whole


def of_a_frozen_encoder(how: str) -> dict[str, Tensor]:
    learner, whole = real(False)
    freeze(learner.encoders["image"])  # type: ignore[arg-type]
    return split_gradients(learner.train(), whole, how)


@pytest.mark.parametrize("how", ["fsdp2", "cached"])
def test_frozen_encoders_are_split_too(two_processes: Processes, how: str) -> None:
    """With cached gradients they are gathered for the first pass only."""
    learner, whole = real(False)
    freeze(learner.encoders["image"])  # type: ignore[arg-type]
    learner.train()(whole)[0].total.backward()
    expected = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    for answer in two_processes.run(of_a_frozen_encoder, [(how,)] * 2):
        assert error(answer, expected) < 1e-5


def with_lora() -> tuple[Learner, Batch]:
    """Adapters that have an effect, in both encoders."""
    learner, whole = real(False)
    for number, encoder in enumerate(learner.encoders.values()):
        add_lora(encoder, LoraConfig(rank=2, dora=number == 0))  # type: ignore[arg-type]
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return learner.train(), whole


def of_lora(how: str) -> dict[str, Tensor]:
    return split_gradients(*with_lora(), how)


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "cached"])
def test_lora_on_two_processes(two_processes: Processes, how: str) -> None:
    pytest.importorskip("peft")
    learner, whole = with_lora()
    learner(whole)[0].total.backward()
    expected = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    assert any("lora_A" in name for name in expected)
    for answer in two_processes.run(of_lora, [(how,)] * 2):
        assert error(answer, expected) < 1e-4


def of_transformers(checkpointing: bool) -> dict[str, Tensor]:
    return split_gradients(*real(checkpointing), "cached")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_with_and_without_checkpointing(two_processes: Processes, checkpointing: bool) -> None:
    expected = whole_gradients(*real(False), STEP, TOTAL)
    for answer in two_processes.run(of_transformers, [(checkpointing,)] * 2):
        assert error(answer, expected) < 1e-4
