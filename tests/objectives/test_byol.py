"""BYOL: the paper's loss and its gradients, the teacher, what a collapse shows, configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.byol import ByolConfig, ByolObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "byol", "modality": "picture", "view": "crop", "momentum": 0.9, "embedding": 6,
    "head": {"hidden": 20, "norm": "batch"}, "predictor": {"hidden": 12, "norm": "batch"},
}  # fmt: skip
LOCAL = {"head": {"hidden": 20, "norm": "layer"}, "predictor": {"hidden": 8, "norm": "none"}}
RISING = {"momentum": {"kind": "cosine", "start": 0.5, "final": 1.0}}
CASES = {
    # Batch norm makes zeros of samples that are alike: their cosines are 0.
    "byol": Case(json.dumps(CONFIG), Reduction.STATISTIC, {"distance": 4}),
    "byol, two kinds": Case(json.dumps(CONFIG | {"view": ["crop", "small"]}), Reduction.STATISTIC, {"distance": 4}),
    "byol, absent": Case(json.dumps(CONFIG), Reduction.STATISTIC, {"distance": 4}, FIVE),
}


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, ByolObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = ByolConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective), objective


def moved(learner: Learner) -> None:
    """Make the student another network than its teacher."""
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def paper(learner: Learner, objective: ByolObjective, size: int) -> Tensor:
    """Equation 2 for both ways."""
    encoder, teacher = learner.encoders["picture"], learner.teachers["picture"].network
    views = [toys.batch(size)["picture"][f"crop{i}"] for i in range(2)]
    predictions = [objective.predictor(objective.head(encoder(x).pooled)) for x in views]
    with torch.no_grad():
        targets = [objective.teacher_head.network(teacher(x).pooled) for x in views]

    def distance(q: Tensor, z: Tensor) -> Tensor:
        return (F.normalize(q, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()

    return distance(predictions[0], targets[1]) + distance(predictions[1], targets[0])


def test_loss_and_gradients_are_those_of_the_paper() -> None:
    learner, objective = build()
    moved(learner)
    trainable = [p for p in learner.parameters() if p.requires_grad]
    expected = paper(learner, objective, 5)
    wanted = torch.autograd.grad(expected, trainable)
    out, _ = learner(toys.batch(5))
    torch.testing.assert_close(out.terms["distance"], expected)
    torch.testing.assert_close(torch.autograd.grad(out.total, trainable), wanted)


def test_the_sum_of_both_ways_is_taken_not_their_mean() -> None:
    """Orthogonal embeddings cost 4, and opposite ones 8 (lightly PR 1286: the mean costs 11 points of linear accuracy)."""
    learner, objective = build(**LOCAL)
    objective.head = objective.predictor = torch.nn.Identity()
    objective.teacher_head.network = torch.nn.Identity()
    x, y = torch.eye(16)[:3], torch.eye(16)[3:6]
    for other, value in ((y, 4.0), (-x, 8.0), (x, 0.0)):
        latents = {"0": x, "1": x, "teacher/0": other, "teacher/1": other}
        assert learner.criterion(latents, learner.context()).total.item() == pytest.approx(value, abs=1e-6)


def test_encoder_and_head_have_teachers_with_the_momentum_of_the_step() -> None:
    learner, objective = build(Plan(10, 5, 50), **RISING)
    assert objective.teachers() == {"picture": Plan(10, 5, 50).schedule(ByolConfig(**CONFIG | RISING).momentum, "m")}
    before = objective.teacher_head.network.steps[0].weight.clone()
    moved(learner)
    _, latents = learner(toys.batch(5), 5, 10)
    learner.after_update(latents, learner.context(5, 10))
    after, student = objective.teacher_head.network.steps[0].weight, objective.head.steps[0].weight
    torch.testing.assert_close(after, 0.75 * before + 0.25 * student)
    assert objective.evaluated() == {}
    assert learner.networks()["picture"] is learner.encoders["picture"]


def test_without_batch_norm_the_loss_is_a_mean_over_samples() -> None:
    assert build(**LOCAL)[1].reduction is Reduction.LOCAL
    assert build(**LOCAL)[1].least_samples == 1
    assert build(**LOCAL | {"head": CONFIG["head"]})[1].least_samples == 2
    assert build(**LOCAL | {"predictor": CONFIG["predictor"]})[1].reduction is Reduction.STATISTIC


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"momentum": 1.5}, "got 1.5, wanted at most 1"),
        ({"momentum": {"kind": "cosine", "start": 0.9}}, "without final"),
        ({"momentum": {"kind": "cosine", "start": 0.9, "final": 2.0}}, "got final 2, wanted at most 1"),
        ({"embedding": 0}, "greater than 0"),
        ({"view": ["crop", "crop"]}, "crop"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


def test_a_ramp_longer_than_the_run_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"momentum\.over '20 steps' \(20 steps\).*longer than the run of 10 steps"):
        build(Plan(10, 5, 50), momentum={"kind": "linear", "start": 0.9, "final": 1.0, "over": "20 steps"})
