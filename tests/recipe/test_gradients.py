"""Parameters that the loss does not reach are named before training starts, by a pass that changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmssl.core.batch import Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, Reduction
from mmssl.datasets import digit_scenes
from mmssl.encoders.resnet import ResNet
from mmssl.recipe.gradients import check_gradients
from mmssl.recipe.recipe import load_recipe
from mmssl.training.runtime.launch import Launch
from tests.contracts import toys

QUICK = Path(__file__).parents[2] / "configs/quickstart/image_text.yaml"


class Pooler(toys.Patches):
    """Patches with a layer between tokens and pooled, as attention pooling has."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.pool = nn.Sequential(nn.Linear(self.width, self.width), nn.BatchNorm1d(self.width))

    def forward(self, x: Tensor, **options: object) -> Features:
        features = super().forward(x)
        return Features(self.pool(features.pooled), features.tokens, features.grid)


class Reads(Objective):
    """The mean square of one output of the picture's encoder, times a scale."""

    reduction = Reduction.LOCAL

    def __init__(self, output: str, weight: float = 1.0, scaled: bool = True) -> None:
        super().__init__()
        self.output, self.weight, self.scaled = output, weight, scaled
        self.scale = nn.Parameter(torch.ones(()))

    def needs(self) -> Needs:
        return {"picture": {"crop": 1}}

    def encode(self, batch: Mapping[str, Mapping[str, Tensor]], ctx: StepContext) -> Latents:  # type: ignore[override]
        return {"x": getattr(ctx.encoders["picture"](batch["picture"]["crop0"]), self.output)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        if self.weight < 0:
            raise ValueError("got a negative weight")
        loss = self.weight * latents["x"].square().mean()
        return LossOutput({"one": loss * self.scale if self.scaled else loss})


@pytest.fixture
def launch() -> Iterator[Launch]:
    launch = Launch("fp32", "cpu", ())
    yield launch
    launch.close()


def check(encoder: Encoder, objective: Objective, launch: Launch) -> None:
    check_gradients(Learner({"picture": encoder}, objective), toys.batch(2), launch)


def refused(encoder: Encoder, objective: Objective, launch: Launch) -> str:
    with pytest.raises(RecipeError) as caught:
        check(encoder, objective, launch)
    return str(caught.value)


def test_parameters_of_pooled_where_tokens_alone_are_read(launch: Launch) -> None:
    assert refused(Pooler(), Reads("tokens"), launch) == (
        "every trainable parameter needs a gradient from the loss\n  encoders.picture: got no gradient for pool.0.weight and 3 "
        "more of 11 parameters: choose another pool or objective, or set frozen: true"
    )
    check(Pooler(), Reads("pooled"), launch)


def test_a_parameter_of_the_objective_without_use(launch: Launch) -> None:
    said = refused(Pooler(), Reads("pooled", scaled=False), launch)
    assert said.splitlines()[1:] == [
        "  objective: got no gradient for scale: choose another pool or objective, or set requires_grad to False in its code"
    ]


def test_a_gradient_of_zero_is_a_gradient(launch: Launch) -> None:
    check(Pooler(), Reads("pooled", weight=0.0), launch)


def test_frozen_parameters_need_none(launch: Launch) -> None:
    encoder = Pooler()
    encoder.pool.requires_grad_(False)
    check(encoder, Reads("tokens"), launch)
    check(encoder.requires_grad_(False), Reads("pooled"), launch)


def test_what_the_objective_refuses(launch: Launch) -> None:
    assert refused(Pooler(), Reads("pooled", weight=-1), launch) == "objective: got a negative weight"


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool, launch: Launch) -> None:
    learner = Learner({"picture": Pooler()}, Reads("pooled")).train(training)
    learner.encoders["picture"].dropout.training = not training
    before = {name: x.clone() for name, x in learner.state_dict().items()}
    modes = {name: module.training for name, module in learner.named_modules()}
    chance = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    check_gradients(learner, toys.batch(2), launch)
    assert any("running" in name for name in before)
    assert all(torch.equal(x, before[name]) for name, x in learner.state_dict().items())
    assert {name: module.training for name, module in learner.named_modules()} == modes
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == chance[1:]  # type: ignore[union-attr]


def test_a_run_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digit_scenes.write(tmp_path / "shards", train=8, validation=1, test=1, shards=1)
    changes = [f"data.shards=[{tmp_path}/shards/train]", f"output={tmp_path}", "batch_size=8", "data.workers=0"]
    recipe = load_recipe(QUICK, [*changes, "evaluators={}", "log.trackers=[]", "device=cpu"])
    forward = ResNet.forward

    def without_graph(self: ResNet, x: Tensor, **options: bool) -> Features:
        return Features(forward(self, x, **options).pooled.detach())

    monkeypatch.setattr(ResNet, "forward", without_graph)
    launch = recipe.training.launch()
    try:
        with pytest.raises(RecipeError, match=r"encoders.image: got no gradient for conv1.weight and \d+ more of"):
            recipe.build(launch)
    finally:
        launch.close()
