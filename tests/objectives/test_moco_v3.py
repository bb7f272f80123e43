"""MoCo v3: steps of the official code, its heads, configs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.moco_v3 import MocoV3Config, MocoV3Objective
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "moco_v3", "modality": "picture", "view": "crop", "temperature": 0.2, "momentum": 0.9, "embedding": 6,
    "head": {"hidden": 20, "layers": 3, "norm": "batch", "norm_last": True},
    "predictor": {"hidden": 12, "norm": "batch", "norm_last": True},
}  # fmt: skip
PLAIN = {"head": {"hidden": 20, "norm": "none"}, "predictor": {"hidden": 12, "norm": "none"}}
COLLAPSED = {"info_nce": 4 * 0.2 * math.log(SIZE)}
CASES = {
    "moco_v3": Case(json.dumps(CONFIG), Reduction.STATISTIC, COLLAPSED),
    "moco_v3, no batch norm": Case(json.dumps(CONFIG | PLAIN), Reduction.GATHER, COLLAPSED),
    "moco_v3, two kinds": Case(json.dumps(CONFIG | {"view": ["crop", "small"]}), Reduction.STATISTIC, COLLAPSED),
    "moco_v3, absent": Case(json.dumps(CONFIG), Reduction.STATISTIC, {"info_nce": 4 * 0.2 * math.log(5)}, FIVE),
}


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, MocoV3Objective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = MocoV3Config.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective).double(), objective


def contrastive_loss(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """moco-v3/moco/builder.py on one process."""
    logits = torch.einsum("nc,mc->nm", F.normalize(q, dim=1), F.normalize(k, dim=1)) / temperature
    return nn.functional.cross_entropy(logits, torch.arange(len(logits))) * (2 * temperature)


def official_mlp(layers: int, width: int, hidden: int, embedding: int) -> nn.Sequential:
    """`_build_mlp` with `last_bn`."""
    steps: list[nn.Module] = []
    for number in range(layers):
        before, after = width if number == 0 else hidden, embedding if number == layers - 1 else hidden
        steps.append(nn.Linear(before, after, bias=False))
        if number < layers - 1:
            steps += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        else:
            steps.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*steps).double()


def test_steps_are_those_of_the_official_code() -> None:
    learner, objective = build()
    twin, _ = build()
    encoder, teacher = twin.encoders["picture"], twin.teachers["picture"].network
    head, teacher_head, predictor = official_mlp(3, 16, 20, 6), official_mlp(3, 16, 20, 6), official_mlp(2, 6, 12, 6)
    for theirs, mine in ((head, objective.head), (teacher_head, objective.head), (predictor, objective.predictor)):
        theirs.load_state_dict({name.removeprefix("steps."): x for name, x in mine.state_dict().items()}, strict=False)
        assert [p.shape for p in theirs.parameters()] == [p.shape for p in mine.parameters()]
    teacher_head.requires_grad_(False)
    students = [p for module in (encoder, head, predictor) for p in module.parameters()]
    ours = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    theirs = torch.optim.SGD(students, lr=0.5, momentum=0.9)
    for step in range(3):
        batch = toys.batch(SIZE, seed=step)
        out, latents = learner(batch, step, 3)
        out.total.backward()
        x1, x2 = (batch["picture"][f"crop{i}"] for i in range(2))
        q1, q2 = (predictor(head(encoder(x).pooled)) for x in (x1, x2))
        with torch.no_grad():
            followers, leaders = [*teacher.parameters(), *teacher_head.parameters()], students
            for mine, other in zip(followers, leaders, strict=False):  # there the teacher moves before it is used
                mine.copy_(mine * 0.9 + other * 0.1)
            k1, k2 = (teacher_head(teacher(x).pooled) for x in (x1, x2))
        expected = contrastive_loss(q1, k2, 0.2) + contrastive_loss(q2, k1, 0.2)
        expected.backward()
        torch.testing.assert_close(out.terms["info_nce"], expected)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context(step, 3))
    mine = [*learner.encoders.parameters(), *objective.head.parameters(), *objective.predictor.parameters()]
    for parameter, other in zip(mine, students, strict=True):
        torch.testing.assert_close(parameter, other)
    assert objective.evaluated() == {}


def test_figures_are_in_batch_accuracy_beside_chance() -> None:
    learner, objective = build(**PLAIN)
    objective.head = objective.predictor = nn.Identity()
    objective.teacher_head.network = nn.Identity()
    x = torch.eye(16, dtype=torch.float64)[:4]
    out = learner.criterion({"0": x, "1": x, "teacher/0": x, "teacher/1": x[[0, 1, 3, 2]]}, learner.context())
    assert out.metrics["accuracy"].item() == 0.75
    assert out.metrics["chance_loss"].item() == pytest.approx(4 * 0.2 * math.log(4))


def test_keys_have_no_gradient() -> None:
    learner, _ = build()
    _, latents = learner(toys.batch(4))
    assert {name for name, x in latents.items() if x.requires_grad} == {"0", "1"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"momentum": -0.1}, "got -0.1, wanted at least 0"),
        ({"temperature": 0}, "greater than 0"),
        ({"view": ["crop", "crop"]}, "wanted two different kinds"),
        ({"predictor": {"kind": "linear"}}, "'mlp'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", ["temperature", "momentum", "embedding", "head", "predictor"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        MocoV3Config.model_validate_json(json.dumps(stated))
