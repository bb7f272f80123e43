"""SimCSE: the authors' loss and gradients; two passes that differ, also beside CLIP; encoders without noise are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder, freeze
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.simcse import SimCseConfig, SimCseObjective
from mmssl.recipe.unions import ObjectiveUnion
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {"kind": "simcse", "modality": "picture", "view": "crop", "temperature": 0.05}
CASES = {
    "simcse": Case(json.dumps(CONFIG), Reduction.GATHER, {"simcse": math.log(SIZE)}),
    "simcse, absent": Case(json.dumps(CONFIG), Reduction.GATHER, {"simcse": math.log(5)}, FIVE),
}
CLIP = {
    "kind": "clip", "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 8,
    "temperature": 0.07,
}  # fmt: skip


def build(encoder: Encoder, **changes: Any) -> tuple[Learner, SimCseObjective]:
    torch.manual_seed(0)
    objective = SimCseConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def tower(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "context_length": 5, "width": 16, "depth": 2, "heads": 2}
    return TextTransformerConfig(**(shape | changes)).build()


def texts(size: int) -> Batch:
    ids = torch.randint(0, 29, (size, 5), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 29
    return Batch({"picture": {"crop0": ids}}, torch.arange(size))


def authors(pooled: Tensor, dense: torch.nn.Linear, temperature: float) -> Tensor:
    """`cl_forward` of SimCSE, for features [2B, D] of first and second passes."""
    outputs = torch.tanh(dense(pooled)).view(2, -1, pooled.shape[1])
    z1, z2 = outputs[0], outputs[1]
    similarity = F.cosine_similarity(z1.unsqueeze(1), z2.unsqueeze(0), dim=-1) / temperature
    return F.cross_entropy(similarity, torch.arange(len(z1)))


def test_loss_and_gradients_are_those_of_the_authors() -> None:
    learner, objective = build(tower(dropout=0.1))
    learner.train().double()  # the temperature of 0.05 magnifies rounding
    batch, trained = texts(6), [*learner.parameters()]
    torch.manual_seed(3)
    out, _ = learner(batch)
    got = torch.autograd.grad(out.total, trained)
    torch.manual_seed(3)
    ids = batch["picture"]["crop0"]
    dense = objective.head[0]
    assert isinstance(dense, torch.nn.Linear)
    expected = authors(learner.encoders["picture"](torch.cat([ids, ids]), pooled_only=True).pooled, dense, 0.05)
    torch.testing.assert_close(out.terms["simcse"], expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected, trained), rtol=1e-4, atol=1e-5)
    assert out.metrics["chance_loss"].item() == pytest.approx(math.log(6))


@pytest.mark.parametrize("noise", [{"dropout": 0.1}, {"drop_path": 0.5}])
def test_passes_differ_in_training_and_not_in_evaluation(noise: dict[str, float]) -> None:
    learner, objective = build(tower(**noise))
    seen: list[int] = []
    learner.encoders["picture"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert objective.needs() == {"picture": {"crop": 1}}
    latents = learner.train()(texts(32))[1]
    assert seen == [64]  # one call
    assert not torch.allclose(latents["0"], latents["1"])
    latents = learner.eval()(texts(32))[1]
    torch.testing.assert_close(latents["0"], latents["1"])


@pytest.mark.parametrize("first", ["clip", "simcse"])
def test_beside_clip_one_pass_is_shared_and_the_other_differs(first: str) -> None:
    """Neither part of a sum takes a pass that both read for two."""
    torch.manual_seed(0)
    encoders = toys.encoders(dropout=0.5)
    parts = {"clip": CLIP, "simcse": CONFIG}
    order = [first, *(parts.keys() - {first})]
    config = {"kind": "weighted", "objectives": {name: {"objective": parts[name]} for name in order}}
    objective = TypeAdapter(ObjectiveUnion).validate_json(json.dumps(config)).build(encoders, Plan.unknown())
    learner = Learner({name: encoders[name] for name in ("picture", "words")}, objective).train()
    seen: list[int] = []
    learner.encoders["picture"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    latents = learner.objective.encode(toys.batch(6), learner.context())
    assert sum(seen) == 12
    assert not torch.allclose(latents["simcse/0"], latents["simcse/1"])


@pytest.mark.parametrize(
    "make", [tower, lambda: VisionTransformerConfig(size=8, patch_size=4, width=16, depth=1, heads=2).build()]
)
def test_an_encoder_without_noise_is_refused(make: Any) -> None:
    encoder = make()
    batch = texts(1) if encoder.token_ids else toys.batch(1)
    learner, objective = build(encoder)
    with pytest.raises(
        ValueError, match=r"encoders\.picture has no dropout, .*: set dropout \(SimCSE: 0.1\) or drop_path"
    ):
        objective.check_views(batch, learner.context())


@pytest.mark.parametrize("noise", [{"dropout": 0.1}, {"drop_path": 0.01}])
def test_an_encoder_with_noise_is_checked_without_a_trace(noise: dict[str, float]) -> None:
    learner, objective = build(tower(**noise))
    learner.eval()
    before, state = torch.get_rng_state(), {name: x.clone() for name, x in learner.state_dict().items()}
    objective.check_views(texts(1), learner.context())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, state[name]) for name, x in learner.state_dict().items())
    assert not any(module.training for module in learner.modules())


def test_a_frozen_encoder_is_refused() -> None:
    encoder = tower(dropout=0.1)
    freeze(encoder)
    with pytest.raises(ValueError, match=r"encoders\.picture is frozen, .* set frozen: false"):
        build(encoder)
    freeze(other := tower(dropout=0.1), 1)
    for parameter in other.layers()[-1]:
        parameter.requires_grad_()
    build(other)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"embedding": 8}, "Extra inputs"),
        ({"modality": "a.b"}, "match pattern"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(toys.Patches(0.1), **changes)


@pytest.mark.parametrize("field", ["modality", "view", "temperature"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        SimCseConfig.model_validate_json(json.dumps(stated))
