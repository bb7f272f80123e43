"""Cached gradients of every registered objective: those of a plain step on the whole batch, on one process and on two."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmssl.core import distributed
from mmssl.core.encoder import freeze
from mmssl.core.objective import Latents, Learner, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.torch_seeding import seed_step
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spec_augment import SpecAugmentConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.training.runtime.launch import Launch, Precision
from mmssl.training.steps.cached import CachedStep
from mmssl.training.steps.plain import PlainStep
from tests.contracts.test_objectives import (
    BASIC,
    CASES,
    CONFIGS,
    SIZE,
    batch,
    build,
    error,
    expected_gradients,
    gradients,
    join,
    others_slow,
    representative,
    whole_gradients,
)
from tests.distributed.processes import WORLD, Processes

SEED, STEP, TOTAL = 5, 2, 10


def cached_gradients(learner: Learner, micro_batches: int, precision: Precision = "fp32") -> dict[str, Tensor]:
    launch = Launch(precision, "cpu")
    wrapped = launch.wrap(learner)
    step = CachedStep(learner, wrapped, launch, SEED, micro_batches=micro_batches)
    share = SIZE // distributed.world_size()
    mine = batch(learner).rows(distributed.rank() * share, (distributed.rank() + 1) * share)
    step.gradients(mine, STEP, TOTAL)
    return gradients(learner)


@cache
def plain_step(name: str) -> tuple[dict[str, Tensor], LossOutput, Latents]:
    """Gradients, loss and latents of a plain step on the whole batch."""
    learner = build(name)
    out, latents = PlainStep(learner, learner, Launch(device="cpu"), SEED).gradients(batch(learner), STEP, TOTAL)
    return gradients(learner), out, latents


@representative
@pytest.mark.parametrize("micro_batches", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 8))])
def test_cached_step_equals_the_plain_step(name: str, micro_batches: int) -> None:
    """SIZE samples in parts of equal size, with a rest, and of one sample."""
    assert_equals_plain(name, micro_batches)


@others_slow(BASIC)
def test_more_micro_batches_than_samples(name: str) -> None:
    assert_equals_plain(name, 20)


def assert_equals_plain(name: str, micro_batches: int) -> None:
    expected, plain_out, plain_latents = plain_step(name)
    learner = build(name)
    cached = CachedStep(learner, learner, Launch(device="cpu"), SEED, micro_batches=micro_batches)
    out, latents = cached.gradients(batch(learner), STEP, TOTAL)
    assert error(gradients(learner), expected) < 1e-10
    for ours, theirs in ((out.terms, plain_out.terms), (out.metrics, plain_out.metrics), (latents, plain_latents)):
        assert ours.keys() == theirs.keys()
        for key, x in ours.items():
            assert not x.requires_grad
            torch.testing.assert_close(x, theirs[key], rtol=1e-10, atol=1e-10)


@others_slow(BASIC)
def test_cached_step_equals_the_plain_step_in_float32(name: str) -> None:
    """Nearly, where the float64 test is exact: a shift before a batch norm has a gradient that nearly cancels.

    Those differ by 3e-5 on any path for multi-crop, and on processors without AVX-512 by 2e-5 for SimCLR and SimSiam.
    """
    learner = build(name).float()
    expected = whole_gradients(learner, batch(learner), STEP, TOTAL)
    assert error(cached_gradients(learner, 3), expected) < 1e-4


@others_slow(BASIC - {"nnclr"}, of=[name for name in CASES if not name.startswith("nnclr")])
def test_cached_step_equals_the_plain_step_nearly_in_bfloat16(name: str) -> None:
    """Gradients of parts are rounded to bfloat16 before they are summed, so that equality ends at its eight bits.

    Not so for the nearest neighbours of NNCLR: rounding decides between rows that are almost equally near.
    """
    learner = build(name).float()
    whole, launch = batch(learner), Launch("bf16", "cpu")
    exact = whole_gradients(learner, whole, STEP, TOTAL)
    PlainStep(learner, learner, launch, SEED).gradients(whole, STEP, TOTAL)
    plain = gradients(learner)
    got = cached_gradients(learner, 3, "bf16")
    assert relative(got, plain) < 0.01
    assert 1e-4 < relative(plain, exact) < 0.5  # it was bfloat16
    assert {x.dtype for x in got.values()} == {torch.float32}


def relative(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Distance of all gradients as one vector."""
    flat, wanted = (torch.cat([x[key].flatten() for key in expected]) for x in (got, expected))
    return float((flat - wanted).norm() / wanted.norm())


@representative
def test_dropout_is_replayed(name: str) -> None:
    """Against micro-batches that keep their graphs, each with its own random stream, and one criterion."""
    learner = build(name, dropout=0.5)
    ctx = learner.context(STEP, TOTAL)
    parts = []
    for number, part in enumerate(batch(learner).chunks(3)):
        seed_step(SEED, STEP, 0, number)
        parts.append(learner.objective.encode(part, ctx))
    learner.criterion(join(parts), ctx).total.backward()
    expected = gradients(learner)
    assert error(cached_gradients(learner, 3), expected) < 1e-10
    learner.eval()
    assert error(cached_gradients(learner, 3), expected) > 1e-2  # dropout did something


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_kind_of_noise_of_real_encoders_is_replayed(checkpointing: bool) -> None:
    """Dropout, patch dropout and dropped paths; with checkpointing, in what is computed for the third time too."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "checkpointing": checkpointing}
    noise = {"dropout": 0.2, "drop_path": 0.3}
    encoders = {
        "picture": VisionTransformerConfig(size=8, patch_size=2, patch_dropout=0.5, **shape, **noise).build(),
        "words": TextTransformerConfig(vocab_size=30, context_length=5, **shape, **noise).build(),
    }
    learner = Learner(encoders, CONFIGS.validate_json(CASES["clip"].config).build(encoders, Plan.unknown())).double()
    learner.case = CASES["clip"]
    ctx, parts = learner.context(STEP, TOTAL), []
    for number, part in enumerate(batch(learner).chunks(3)):
        seed_step(SEED, STEP, 0, number)
        parts.append(learner.objective.encode(part, ctx))
    learner.criterion(join(parts), ctx).total.backward()
    expected = gradients(learner)
    assert error(cached_gradients(learner, 3), expected) < 1e-10
    (again,) = (learner.objective.encode(part, ctx) for part in batch(learner).chunks(SIZE))
    assert not torch.allclose(again["picture"], join(parts)["picture"], rtol=0.01)  # there was noise


def test_hidden_parts_of_spectrograms_are_replayed() -> None:
    """SpecAugment in the front-end hides the same the second time."""
    torch.manual_seed(0)
    front_end = MelConfig(
        rate=1000, window=64, hop=16, mels=16, spec_augment=SpecAugmentConfig(filter_width=6, time_width=9)
    )
    encoders = {
        "picture": AudioTransformerConfig(
            front_end=front_end, seconds=0.4, patch_size=(4, 5), width=16, depth=1, heads=2
        ).build(),
        "words": TextTransformerConfig(vocab_size=30, context_length=5, width=16, depth=1, heads=2).build(),
    }
    learner = Learner(encoders, CONFIGS.validate_json(CASES["clip"].config).build(encoders, Plan.unknown()))
    learner.case = CASES["clip"]
    toys = batch(learner)
    sounds = torch.randint(-3000, 3000, (SIZE, 1, 400), dtype=torch.int16, generator=torch.Generator().manual_seed(1))
    whole = replace(toys, views={**toys.views, "picture": dict.fromkeys(toys.views["picture"], sounds)})
    ctx, parts = learner.context(STEP, TOTAL), []
    for number, part in enumerate(whole.chunks(3)):
        seed_step(SEED, STEP, 0, number)
        parts.append(learner.objective.encode(part, ctx))
    learner.criterion(join(parts), ctx).total.backward()
    expected = gradients(learner)
    launch = Launch(device="cpu")
    cached = CachedStep(learner, learner, launch, SEED, micro_batches=-(-SIZE // 3))
    cached.gradients(whole, STEP, TOTAL)
    assert error(gradients(learner), expected) < 1e-5
    learner.eval()
    cached.gradients(whole, STEP, TOTAL)
    assert error(gradients(learner), expected) > 1e-2  # something was hidden


def on_two_processes(name: str) -> dict[str, Any]:
    """Gradients, and how many numbers were averaged over processes in how many forward passes that ask for it."""
    learner, launch = build(name), Launch(device="cpu")
    wrapped = launch.wrap(learner)
    assert isinstance(wrapped, DistributedDataParallel)
    averaged: list[int] = []

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch wants exact annotations or none
        averaged.append(bucket.buffer().numel())
        dist.all_reduce(bucket.buffer())
        future = torch.futures.Future()
        future.set_result(bucket.buffer() / WORLD)
        return future

    wrapped.register_comm_hook(None, hook)
    step = CachedStep(learner, wrapped, launch, SEED, micro_batches=3)
    share = SIZE // WORLD
    mine = batch(learner).rows(distributed.rank() * share, (distributed.rank() + 1) * share)
    found = []
    for _ in range(3):  # torch regroups the parameters after the first step
        step.gradients(mine, STEP, TOTAL)
        found.append(gradients(learner))
    numbers = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)
    return {"gradients": found, "averaged": sum(averaged), "numbers": numbers}


@representative
def test_two_processes_give_the_gradient_of_one(name: str, two_processes: Processes) -> None:
    """And each parameter is averaged exactly once a step."""
    expected = expected_gradients(name, STEP, TOTAL)
    for result in two_processes.run(on_two_processes, [(name,)] * WORLD):
        assert [error(got, expected) < 1e-9 for got in result["gradients"]] == [True] * 3
        assert result["averaged"] == 3 * result["numbers"]


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_the_gradient_of_the_temperature_is_not_multiplied(micro_batches: int) -> None:
    """Repeating the criterion for every micro-batch makes it `micro_batches` times too large."""
    name = "clip"
    assert name in CASES
    learner = build(name)
    key = "objective.logit_scale.picture-words"
    expected = whole_gradients(learner, batch(learner), STEP, TOTAL)[key]
    ratio = cached_gradients(learner, micro_batches)[key] / expected
    assert float(ratio) == pytest.approx(1.0, abs=1e-12)


def may_be_frozen(name: str) -> list[str]:
    """Modalities beside whose encoder something else is left to train."""
    learner = build(name)
    trained = [key for key, p in learner.named_parameters() if p.requires_grad]
    return [m for m in learner.objective.needs() if not all(key.startswith(f"encoders.{m}.") for key in trained)]


def locked(name: str, modality: str, dropout: float = 0.0) -> tuple[Learner, list[bool]]:
    """A learner in training mode with one frozen encoder, and a list that fills with the `pooled_only` of its calls."""
    learner, calls = build(name, dropout=dropout), []
    encoder = learner.encoders[modality]
    freeze(encoder)  # type: ignore[arg-type]
    encoder.register_forward_hook(
        lambda module, inputs, options, output: calls.append(options.get("pooled_only", False)), with_kwargs=True
    )
    return learner.train(), calls


def trainable_gradients(learner: Learner) -> dict[str, Tensor]:
    """Of all parameters that are not frozen, which must have one; cleared afterwards."""
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, p in learner.named_parameters() if p.requires_grad}
    learner.zero_grad()
    return found


@others_slow(BASIC)
def test_a_frozen_encoder_is_asked_once(name: str) -> None:
    """But where tokens are wanted, which are too many to be kept; gradients, terms and latents are those of a plain step."""
    for modality in may_be_frozen(name):
        assert_asked_once(name, modality)


def assert_asked_once(name: str, modality: str) -> None:
    launch, (learner, asked), (other, asked_again) = (
        Launch(device="cpu"),
        locked(name, modality),
        locked(name, modality),
    )
    whole = batch(learner)
    plain_out, plain_latents = PlainStep(learner, learner, launch, SEED).gradients(whole, STEP, TOTAL)
    cached = CachedStep(other, other, launch, SEED, micro_batches=3)
    for _ in range(2):
        asked_again.clear()
        out, latents = cached.gradients(whole, STEP, TOTAL)
        found = trainable_gradients(other)
        assert sum(asked_again) == 3 * sum(asked)
        assert len(asked_again) == 3 * sum(1 if pooled_only else 2 for pooled_only in asked)
    assert error(found, trainable_gradients(learner)) < 1e-10
    for ours, theirs in ((out.terms, plain_out.terms), (latents, plain_latents)):
        for key, x in ours.items():
            torch.testing.assert_close(x, theirs[key], rtol=1e-10, atol=1e-10)
    ctx = other.context()
    assert all(ctx.encoders[key] is encoder for key, encoder in other.encoders.items())


def test_a_teacher_is_asked_once() -> None:
    """Its pooled features of the first pass are those of the second."""
    learner, asked = build("byol").train(), []
    network = learner.teachers["picture"].network
    network.register_forward_hook(lambda *_: asked.append(network.training))
    whole = batch(learner)
    cached = CachedStep(learner, learner, Launch(device="cpu"), SEED, micro_batches=3)
    cached.gradients(whole, STEP, TOTAL)
    found = trainable_gradients(learner)
    assert asked == [False] * 3 * 2, "two views of three micro-batches, in evaluation mode"
    assert error(found, whole_gradients(learner, whole, STEP, TOTAL)) < 1e-10


def test_noise_of_other_encoders_is_replayed_beside_a_frozen_one() -> None:
    learner, asked = locked("clip, three pairs", "picture", dropout=0.5)
    ctx, parts = learner.context(STEP, TOTAL), []
    for number, part in enumerate(batch(learner).chunks(3)):
        seed_step(SEED, STEP, 0, number)
        parts.append(learner.objective.encode(part, ctx))
    learner.criterion(join(parts), ctx).total.backward()
    expected = trainable_gradients(learner)
    step = CachedStep(learner, learner, Launch(device="cpu"), SEED, micro_batches=3)
    asked.clear()
    step.gradients(batch(learner), STEP, TOTAL)
    assert len(asked) == 3
    assert error(trainable_gradients(learner), expected) < 1e-10
    learner.encoders["sound"].eval()
    step.gradients(batch(learner), STEP, TOTAL)
    assert error(trainable_gradients(learner), expected) > 1e-2  # dropout did something
    learner.encoders["picture"].train()  # a frozen encoder that draws random numbers must draw them again
    asked.clear()
    step.gradients(batch(learner), STEP, TOTAL)
    assert len(asked) == 6


def frozen_on_two_processes(name: str, modality: str) -> tuple[dict[str, Tensor], int]:
    """Gradients, and how often the frozen encoder was asked."""
    (learner, asked), launch = locked(name, modality), Launch(device="cpu")
    step = CachedStep(learner, launch.wrap(learner), launch, SEED, micro_batches=2)
    share = SIZE // WORLD
    step.gradients(batch(learner).rows(distributed.rank() * share, (distributed.rank() + 1) * share), STEP, TOTAL)
    return trainable_gradients(learner), len(asked)


@others_slow(BASIC)
def test_two_processes_with_frozen_encoders_give_the_gradient_of_one(name: str, two_processes: Processes) -> None:
    for modality in may_be_frozen(name):
        learner, asked = locked(name, modality)
        learner(batch(learner), STEP, TOTAL)[0].total.backward()
        expected = trainable_gradients(learner)
        for got, times in two_processes.run(frozen_on_two_processes, [(name, modality)] * WORLD):
            assert times == 2 * sum(1 if pooled_only else 2 for pooled_only in asked)
            assert error(got, expected) < 1e-9, modality
