"""Denoising: noise by sample and step, published schedules, losses by hand, learning, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.core.seeding import fold
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.losses.mae import patchify
from mmssl.objectives.denoise import DenoiseConfig, DenoiseObjective
from mmssl.objectives.parts.gumbel import gumbel_noise
from mmssl.objectives.parts.noises import Noise, NoiseConfig, kept_shares, normal_noise, uniform_noise
from mmssl.objectives.parts.presence import mixed_bits
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

NOISES: TypeAdapter[Noise] = TypeAdapter(NoiseConfig)
CONFIG: dict[str, Any] = {
    "kind": "denoise", "modality": "picture", "view": "crop", "noise": {"kind": "gaussian"}, "patch_values": 12,
    "predictor": {"kind": "linear"},
}  # fmt: skip
NOISE = CONFIG | {"noise": {"kind": "diffusion"}, "target": "noise"}


def noise(**config: Any) -> Noise:
    return NOISES.validate_json(json.dumps(config))


PIXELS = toys.batch(SIZE)["picture"]["crop0"]
ADDED = noise(kind="diffusion").add(PIXELS / 255, torch.arange(SIZE), fold(0, "shared", "denoise", 0))[1]
assert ADDED is not None


def power(x: Tensor, absent: tuple[int, ...] = ()) -> dict[str, float]:
    """Loss of a prediction of zero."""
    kept = [row for row in range(SIZE) if row not in absent]
    return {"denoising": float(x[kept].double().square().mean())}


CASES = {
    "denoise": Case(json.dumps(CONFIG), Reduction.LOCAL, power(PIXELS / 127.5 - 1)),
    "denoise, zeros": Case(
        json.dumps(CONFIG | {"noise": {"kind": "zeros"}}), Reduction.LOCAL, power(PIXELS / 127.5 - 1)
    ),
    "denoise, noise": Case(json.dumps(NOISE), Reduction.LOCAL, power(ADDED)),
    "denoise, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, power(PIXELS / 127.5 - 1, FIVE["picture"]), FIVE),
}


def build(**changes: Any) -> tuple[Learner, DenoiseObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    made = DenoiseConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"picture": encoder}, Plan.unknown())
    return Learner({"picture": encoder}, made), made


def batch(count: int = 8) -> Batch:
    x = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Batch({"picture": {"crop0": x}}, torch.arange(count))


def test_schedules_are_the_papers() -> None:
    # Of ssl-golden-values-2.json.
    assert kept_shares("linear", 1000)[499] == pytest.approx(0.07858724288177821, rel=1e-12)
    assert kept_shares("cosine", 1000)[499] == pytest.approx(0.49384359044063775, rel=1e-12)
    assert kept_shares("cosine", 1000)[-1] > 0  # the last beta is clipped at 0.999


def test_noise_is_normal_and_a_function_of_sample_and_step() -> None:
    index = torch.arange(64)
    found = normal_noise(index, 3, torch.Size((3, 32, 32)))
    assert found.shape == (64, 3, 32, 32)
    count = found.numel()
    assert abs(float(found.mean())) < 5 / count**0.5
    assert float(found.var()) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert torch.equal(normal_noise(index[5:6], 3, torch.Size((3, 32, 32)))[0], found[5])
    assert not torch.equal(normal_noise(index[5:6], 4, torch.Size((3, 32, 32)))[0], found[5])
    uniform = uniform_noise(index, 3, 1000)
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)


def test_noise_is_finite_where_all_bits_of_a_hash_are_set() -> None:
    """As in one of 17 million numbers, of which a step on large pictures draws more: one infinite number would skip the step."""
    index = torch.tensor([1168899094793470529])  # its first hash ends with 24 ones
    assert mixed_bits(mixed_bits(index)) & 0xFFFFFF == 0xFFFFFF
    uniform = uniform_noise(index, 0, 3)
    assert uniform[0, 0] == 1 - 2**-24
    assert normal_noise(index, 0, torch.Size((3,))).isfinite().all()
    assert gumbel_noise(index, 0, 1, 3).isfinite().all()


def test_views_are_changed_as_the_equations_say() -> None:
    x, index = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16)
    changed, added = noise(kind="gaussian", deviation=0.1).add(x, index, 1)
    assert added is not None
    torch.testing.assert_close(changed, x + 0.1 * added)
    changed, added = noise(kind="zeros", share=0.25).add(x, index, 1)
    assert added is None
    gone = changed == 0
    assert torch.equal(changed[~gone], x[~gone])
    assert 0.2 < float(gone.float().mean()) < 0.3
    changed, added = noise(kind="diffusion", levels=50).add(x, index, 1)
    assert added is not None
    # The level of each sample is solved for from one value, and must explain all others.
    scaled, seen, levels = x * 2 - 1, changed * 2 - 1, kept_shares("linear", 50).float()
    for row in range(16):
        by_level = levels[:, None].sqrt() * scaled[row].flatten() + (1 - levels[:, None]).sqrt() * added[row].flatten()
        wrong = (by_level - seen[row].flatten()).abs().amax(1)
        assert int((wrong < 1e-4).sum()) == 1


@pytest.mark.parametrize("target", ["clean", "noise"])
def test_losses_by_hand(target: str) -> None:
    learner, objective = build(target=target)
    given, ctx = batch(), learner.context(step=2, total_steps=9)
    latents = objective.encode(given, ctx)
    output = objective.criterion(latents, ctx)
    clean = given.view("picture", "crop0").float() / 255
    noisy, added = objective.noise.add(clean, given.index, ctx.generator("denoise").initial_seed())
    encoder = ctx.encoders["picture"]
    assert added is not None
    wanted = patchify(added if target == "noise" else clean * 2 - 1, (2, 2))
    prediction = objective.head(encoder(noisy).tokens)
    torch.testing.assert_close(output.terms["denoising"], (prediction - wanted).square().mean())
    untouched = 0 if target == "noise" else patchify(noisy * 2 - 1, (2, 2))
    torch.testing.assert_close(output.metrics["untouched_loss"], (untouched - wanted).square().mean())


def test_it_learns_to_take_noise_away() -> None:
    learner, objective = build(noise={"kind": "gaussian", "deviation": 0.5}, predictor={"kind": "bert"})
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    flat = torch.randint(0, 256, (64, 3, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    given = Batch({"picture": {"crop0": flat.expand(-1, -1, 8, 8)}}, torch.arange(64))
    for step in range(120):
        ctx = learner.context(step=step, total_steps=120)
        output = objective.criterion(objective.encode(given, ctx), ctx)
        optimizer.zero_grad()
        output.terms["denoising"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(output.terms["denoising"].detach()) < 0.4 * float(output.metrics["untouched_loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": {"kind": "zeros"}, "target": "noise"}, "got target: noise with noise zeros"),
        ({"noise": {"kind": "gaussian", "deviation": 0}}, "greater than 0"),
        ({"noise": {"kind": "zeros", "share": 1}}, "less than 1"),
        ({"patch_values": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)


def test_sounds_of_16_bits_are_changed_as_numbers_between_minus_1_and_1() -> None:
    torch.manual_seed(0)
    encoders = {"sound": toys.Pulses()}
    config = CONFIG | {"modality": "sound", "noise": {"kind": "gaussian", "deviation": 0.01}, "patch_values": 4}
    made = DenoiseConfig.model_validate_json(json.dumps(config)).build(encoders, Plan.unknown())  # type: ignore[arg-type]
    learner, x = Learner(encoders, made), torch.randint(-20_000, 20_000, (3, 2, 32), dtype=torch.int16)  # type: ignore[arg-type]
    stored, floats = (
        made.encode(Batch({"sound": {"crop0": given}}, torch.arange(3)), learner.context(1, 9))
        for given in (x, x.float() / 32768)
    )
    assert all(torch.equal(stored[name], floats[name]) for name in ("prediction", "target", "noisy"))
    assert float((stored["noisy"] - stored["target"]).std()) == pytest.approx(0.01, rel=0.2)


def test_noise_of_clips_is_cut_as_encoders_cut_clips() -> None:
    torch.manual_seed(0)
    shape = {"size": 8, "frames": 4, "patch_size": 4, "tubelet": 2, "width": 8, "depth": 1, "heads": 2}
    encoders = {"clip": SpaceTimeConfig(**shape).build()}  # type: ignore[arg-type]
    made = DenoiseConfig.model_validate_json(json.dumps(NOISE | {"modality": "clip", "patch_values": 96})).build(
        encoders, Plan.unknown()
    )
    learner, x = Learner(encoders, made), torch.rand(2, 4, 3, 8, 8)  # type: ignore[arg-type]
    ctx = learner.context(1, 9)
    target = made.encode(Batch({"clip": {"crop0": x}}, torch.arange(2)), ctx)["target"]
    _, added = made.noise.add(x, torch.arange(2), ctx.generator("denoise").initial_seed())
    assert added is not None
    first = torch.stack([added[0, t, :, i, j] for t in range(2) for i in range(4) for j in range(4)]).flatten()
    assert torch.equal(target[0, 0], first), "two frames of the place above on the left"


def test_views_that_do_not_fit() -> None:
    learner, objective = build(patch_values=11)
    with pytest.raises(ValueError, match="patch_values: got 11, wanted 12"):
        objective.check_views(batch(), learner.context())
    learner, objective = build()
    words = Batch({"picture": {"crop0": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}}, torch.arange(1))
    with pytest.raises(ValueError, match=r"got torch\.int64 views of 'picture', wanted pixels, sounds or floats"):
        objective.check_views(words, learner.context())
    with pytest.raises(ValueError, match="needs an encoder for 'words' with a token grid"):
        DenoiseConfig.model_validate_json(json.dumps(CONFIG | {"modality": "words"})).build(
            {"words": toys.Words()}, Plan.unknown()
        )
