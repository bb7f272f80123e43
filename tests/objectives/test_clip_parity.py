"""The CLIP objective against open_clip: same weights, same batch, one process and two."""

from __future__ import annotations

import json
import math

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.objectives.clip import ClipConfig, ClipObjective
from tests.contracts import toys
from tests.distributed.processes import WORLD, Processes

CONFIG = {
    "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 8, "temperature": 0.07,
}  # fmt: skip
SIZE = 12
SCALE = "objective.logit_scale.picture-words"


def build(dtype: torch.dtype = torch.float32) -> Learner:
    torch.manual_seed(0)
    encoders = toys.encoders()
    del encoders["sound"]
    return Learner(encoders, ClipConfig.model_validate_json(json.dumps(CONFIG)).build(encoders, Plan.unknown())).to(
        dtype
    )


def features(learner: Learner, part: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What open_clip's model would hand to its loss, written with plain operations."""
    state = dict(learner.named_parameters())
    picture = learner.encoders["picture"](part["picture"]["crop0"]).pooled
    words = learner.encoders["words"](part["words"]["tokens0"]).pooled
    return (
        F.normalize(picture @ state["objective.projections.picture.linear.weight"].T, dim=-1),
        F.normalize(words @ state["objective.projections.words.linear.weight"].T, dim=-1),
        state[SCALE].exp(),
    )


def outcome(learner: Learner, loss: Tensor) -> dict[str, Tensor]:
    """The loss and all gradients, averaged over processes as data parallelism does."""
    loss.backward()
    found = {"loss": loss, **{name: p.grad for name, p in learner.named_parameters() if p.grad is not None}}
    mean = {name: distributed.total_detached(x) / distributed.world_size() for name, x in found.items()}
    learner.zero_grad()
    return mean


def rows() -> Batch:
    size = SIZE // distributed.world_size()
    return toys.batch(SIZE).rows(distributed.rank() * size, (distributed.rank() + 1) * size)


def ours(dtype: str = "float64") -> dict[str, Tensor]:
    learner = build(getattr(torch, dtype))
    out, _ = learner(rows())
    return outcome(learner, out.terms["picture-words"])


def theirs(dtype: str = "float64", local_loss: bool = True, gather_with_grad: bool = True) -> dict[str, Tensor]:
    learner = build(getattr(torch, dtype))
    loss = open_clip.loss.ClipLoss(
        local_loss=local_loss,
        gather_with_grad=gather_with_grad,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return outcome(learner, loss(*features(learner, rows())))


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    assert len(got) > 10
    for name, x in expected.items():
        torch.testing.assert_close(
            got[name], x, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-13)])
def test_one_process(dtype: str, tolerance: float) -> None:
    assert_equal(ours(dtype), theirs(dtype), tolerance)


def test_two_processes(two_processes: Processes) -> None:
    alone = theirs()
    for expected in two_processes.run(theirs):
        assert_equal(expected, alone, 1e-12)
    for got in two_processes.run(ours):
        assert_equal(got, alone, 1e-12)


def test_two_processes_in_float32(two_processes: Processes) -> None:
    alone = theirs("float32")
    for got in two_processes.run(ours, [("float32",)] * WORLD):
        assert_equal(got, alone, 5e-6)


def test_the_comparison_sees_a_gather_without_gradient(two_processes: Processes) -> None:
    """The usual mistake leaves the loss right and halves the gradients of encoders."""
    alone = theirs()
    wrong, _ = two_processes.run(theirs, [("float64", True, False)] * WORLD)
    torch.testing.assert_close(wrong["loss"], alone["loss"])
    head = "objective.projections.picture.linear.weight"
    assert wrong[head].norm() / alone[head].norm() < 0.8


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)])
def test_the_scale_is_clamped_after_the_step_as_in_open_clip(start: float, end: float) -> None:
    learner = build()
    assert isinstance(learner.objective, ClipObjective)
    parameter = learner.objective.logit_scale["picture-words"]
    with torch.no_grad():
        parameter.fill_(start)
        reference = parameter.clone().clamp_(0, math.log(100))
    out, latents = learner(toys.batch(4))
    assert out.metrics["picture-words/scale"].item() == pytest.approx(
        math.exp(start), rel=1e-6
    )  # not in the forward pass
    out.total.backward()
    assert parameter.grad is not None
    assert parameter.grad != 0
    learner.objective.after_update(latents, learner.context())
    assert parameter.item() == reference.item()
    assert parameter.item() == pytest.approx(end, rel=1e-6)
    assert parameter.requires_grad


def test_the_largest_scale_can_be_set() -> None:
    encoders = toys.encoders()
    objective = ClipConfig.model_validate_json(json.dumps(CONFIG | {"max_scale": 20.0})).build(encoders, Plan.unknown())
    with torch.no_grad():
        objective.logit_scale["picture-words"].fill_(9.0)
    objective.after_update({}, Learner(encoders, objective).context())
    assert objective.logit_scale["picture-words"].exp().item() == pytest.approx(20, rel=1e-6)
