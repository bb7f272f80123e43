"""NNCLR: steps of the paper's pseudocode, what the queue holds, configs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.nnclr import NnClrConfig, NnClrObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "nnclr", "modality": "picture", "view": "crop", "temperature": 0.2, "queue": 20, "embedding": 6,
    "head": {"hidden": 20, "layers": 3, "norm": "batch", "norm_last": True}, "predictor": {"hidden": 12, "norm": "batch"},
}  # fmt: skip
PLAIN = {"head": {"hidden": 20, "norm": "none"}, "predictor": {"hidden": 12, "norm": "none"}}
COLLAPSED = {"info_nce": math.log(SIZE)}
CASES = {
    "nnclr": Case(json.dumps(CONFIG), Reduction.STATISTIC, COLLAPSED),
    "nnclr, filled": Case(json.dumps(CONFIG), Reduction.STATISTIC, COLLAPSED, updates=3),
    "nnclr, no batch norm": Case(json.dumps(CONFIG | PLAIN), Reduction.GATHER, COLLAPSED),
    "nnclr, two kinds": Case(json.dumps(CONFIG | {"view": ["crop", "small"]}), Reduction.STATISTIC, COLLAPSED),
    "nnclr, absent": Case(json.dumps(CONFIG), Reduction.STATISTIC, {"info_nce": math.log(5)}, FIVE),
}


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, NnClrObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = NnClrConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective).double(), objective


def nearest(z: Tensor, queue: Tensor) -> Tensor:
    """NN(z, Q) of the pseudocode."""
    return torch.stack([max(queue, key=lambda row, one=one: float(one @ row)) for one in F.normalize(z, dim=1)])


def paper(nn: Tensor, p: Tensor, t: float) -> Tensor:
    """L(nn, p) of the pseudocode, row by row."""
    p = F.normalize(p, dim=1)
    costs = [(nn[i] @ p.T / t).logsumexp(0) - nn[i] @ p[i] / t for i in range(len(nn))]
    return torch.stack(costs).mean()


@pytest.mark.parametrize("changes", [{}, PLAIN])
def test_steps_are_those_of_the_pseudocode(changes: dict[str, Any]) -> None:
    learner, objective = build(**changes)
    twin, parts = build(**changes)
    queue = [*parts.queue.rows.clone()]
    ours = torch.optim.SGD(learner.parameters(), lr=0.5, momentum=0.9)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.5, momentum=0.9)
    for step in range(4):  # 4 x 8 projections wrap 20 places
        batch = toys.batch(SIZE, seed=step)
        out, latents = learner(batch, step, 4)
        out.total.backward()
        z1, z2 = (parts.head(twin.encoders["picture"](batch["picture"][f"crop{i}"]).pooled) for i in range(2))
        p1, p2 = parts.predictor(z1), parts.predictor(z2)
        nn1, nn2 = (nearest(z.detach(), torch.stack(queue)) for z in (z1, z2))
        expected = paper(nn1, p2, 0.2) / 2 + paper(nn2, p1, 0.2) / 2
        expected.backward()
        torch.testing.assert_close(out.terms["info_nce"], expected)
        queue = [*queue, *F.normalize(z1.detach(), dim=1)][-20:]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context(step, 4))
        oldest_first = torch.roll(objective.queue.rows, -int(objective.queue.start), 0)
        torch.testing.assert_close(oldest_first, torch.stack(queue))
    for mine, other in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_neighbours_are_found_before_the_projections_are_pushed() -> None:
    """Otherwise each sample would be its own neighbour."""
    learner, objective = build(Plan(10, SIZE, 80))
    batch, before = toys.batch(SIZE), objective.queue.rows.clone()
    out, latents = learner(batch, 2, 10)
    assert torch.equal(objective.queue.rows, before)
    learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context(2, 10))
    again = learner(batch, 5, 10)[0]
    assert again.metrics["queue_age"].item() == 3
    projections = F.normalize(objective.head(latents["0"]), dim=1)
    torch.testing.assert_close(objective.queue.nearest(projections), projections)
    assert torch.equal(objective.queue.rows[SIZE:], before[SIZE:])


def test_figures_are_in_batch_accuracy_beside_chance() -> None:
    learner, objective = build(**PLAIN)
    objective.head = objective.predictor = torch.nn.Identity()
    x = torch.eye(6, dtype=torch.float64)[:4]
    objective.queue.push(x, 0)
    out = learner.criterion({"0": x, "1": x[[0, 1, 3, 2]]}, learner.context())
    assert out.metrics["accuracy"].item() == 0.5
    assert out.metrics["chance_loss"].item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"queue": 0}, "greater than 0"),
        ({"view": ["crop", "crop"]}, "wanted two different kinds"),
        ({"predictor": {"kind": "linear"}}, "'mlp'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", ["temperature", "queue", "embedding", "head", "predictor"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        NnClrConfig.model_validate_json(json.dumps(stated))


def test_a_queue_shorter_than_the_batch_is_refused() -> None:
    build(Plan(10, 20, 200))
    with pytest.raises(ValueError, match=r"queue: got a length of 20, wanted at least 21"):
        build(Plan(10, 21, 210))
