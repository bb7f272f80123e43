"""MoCo v2: steps of the official code, what the queue holds, symmetric loss, configs."""

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
from mmssl.objectives.moco_v2 import MocoV2Config, MocoV2Objective
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "moco_v2", "modality": "picture", "view": "crop", "temperature": 0.2, "momentum": 0.9, "queue": 20,
    "embedding": 6, "head": {"hidden": 20, "norm": "none"},
}  # fmt: skip
NORM = {"head": {"hidden": 20, "norm": "batch"}}
LN_K = math.log(CONFIG["queue"] + 1)
CASES = {
    "moco_v2": Case(json.dumps(CONFIG), Reduction.LOCAL, {"info_nce": LN_K}, updates=3),
    "moco_v2, symmetric": Case(
        json.dumps(CONFIG | {"symmetric": True}), Reduction.LOCAL, {"info_nce": 2 * LN_K}, updates=2
    ),
    "moco_v2, batch norm": Case(json.dumps(CONFIG | NORM), Reduction.STATISTIC, {"info_nce": LN_K}, updates=3),
    "moco_v2, two kinds": Case(
        json.dumps(CONFIG | {"view": ["crop", "small"]}), Reduction.LOCAL, {"info_nce": LN_K}, updates=3
    ),
    "moco_v2, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, {"info_nce": LN_K}, FIVE, updates=4),
    "moco_v2, symmetric, absent": Case(
        json.dumps(CONFIG | NORM | {"symmetric": True}), Reduction.STATISTIC, {"info_nce": 2 * LN_K}, FIVE, updates=2
    ),
}


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, MocoV2Objective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = MocoV2Config.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective).double(), objective


class Official(nn.Module):
    """moco/builder.py and its notebook for small images (`symmetric`), without the shuffling of batch norm; K % batch == 0."""

    def __init__(self, query: nn.Module, key: nn.Module, queue: Tensor, m: float, t: float, symmetric: bool) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = query, key
        self.queue, self.ptr, self.m, self.t, self.symmetric = queue.T.clone(), 0, m, t, symmetric

    def contrast(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            k = F.normalize(self.encoder_k(im_k), dim=1)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, self.queue)
        logits = torch.cat([positive, negative], dim=1) / self.t
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), k

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        with torch.no_grad():
            for mine, theirs in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                mine.copy_(mine * self.m + theirs * (1 - self.m))
        loss, keys = self.contrast(first, second)
        if self.symmetric:
            other, first_keys = self.contrast(second, first)
            loss, keys = loss + other, torch.cat([first_keys, keys])
        self.queue = self.queue.clone()  # backward still needs the old one
        self.queue[:, self.ptr : self.ptr + len(keys)] = keys.T
        self.ptr = (self.ptr + len(keys)) % self.queue.shape[1]
        return loss


class Pooled(nn.Module):
    """Encoder and head as one module."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).pooled)  # type: ignore[no-any-return]


@pytest.mark.parametrize("symmetric", [False, True])
def test_steps_are_those_of_the_official_code(symmetric: bool) -> None:
    length = (
        48 if symmetric else 24
    )  # the official code wants a multiple of the keys of a step; after 4 steps it has wrapped
    learner, objective = build(symmetric=symmetric, queue=length)
    twin, parts = build(symmetric=symmetric, queue=length)
    official = Official(
        Pooled(twin.encoders["picture"], parts.head),
        Pooled(twin.teachers["picture"].network, parts.teacher_head.network),
        parts.queue.rows, 0.9, 0.2, symmetric,
    )  # fmt: skip
    ours = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    theirs = torch.optim.SGD(official.encoder_q.parameters(), lr=0.5, momentum=0.9)
    for step in range(4):
        batch = toys.batch(8, seed=step)
        out, latents = learner(batch, step, 4)
        out.total.backward()
        expected = official(batch["picture"]["crop0"], batch["picture"]["crop1"])
        expected.backward()
        torch.testing.assert_close(out.terms["info_nce"], expected)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context(step, 4))
        torch.testing.assert_close(objective.queue.rows, official.queue.T)
    for mine, other in zip(learner.encoders.parameters(), twin.encoders.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert objective.queue.steps.unique().tolist() == [1, 2, 3]


def test_keys_are_pushed_after_the_loss_and_before_the_teacher_moves() -> None:
    learner, objective = build(Plan(10, 8, 80))
    before = objective.queue.rows.clone()
    with torch.no_grad():
        for parameter in learner.encoders.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = toys.batch(SIZE)
    keys = learner.teachers["picture"](batch["picture"]["crop1"]).pooled
    expected = F.normalize(objective.teacher_head(keys), dim=1)
    out, latents = learner(batch, 3, 10)
    assert torch.equal(objective.queue.rows, before)
    learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context(3, 10))
    torch.testing.assert_close(objective.queue.rows[:SIZE], expected)
    assert torch.equal(objective.queue.rows[SIZE:], before[SIZE:])
    assert learner(batch, 7, 10)[0].metrics["queue_age"].item() == 4
    assert objective.evaluated() == {}


def test_one_view_is_the_query_unless_symmetric() -> None:
    for symmetric, names in ((False, {"0", "teacher/1"}), (True, {"0", "1", "teacher/0", "teacher/1"})):
        learner, objective = build(symmetric=symmetric)
        assert objective.needs() == {"picture": {"crop": 2}}
        assert learner(toys.batch(3))[1].keys() == names
    assert build(view=["small", "crop"])[1].needs() == {"picture": {"small": 1, "crop": 1}}


def test_metrics_are_of_the_queue_that_the_loss_saw() -> None:
    """After the push the keys themselves are in the queue, and no key would be nearer than all of it."""
    learner, _ = build()
    batch = toys.batch(SIZE)
    batch.views["picture"]["crop1"].copy_(batch["picture"]["crop0"])  # type: ignore[index]
    out, latents = learner(batch)
    learner.after_update({k: x.detach() for k, x in latents.items()} | out.kept, learner.context())
    assert out.metrics["accuracy"].item() == 1
    assert out.metrics["chance_loss"].item() == pytest.approx(LN_K)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"momentum": 1.5}, "got 1.5, wanted at most 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"queue": 0}, "greater than 0"),
        ({"view": ["crop", "crop"]}, "wanted two different kinds"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", ["temperature", "momentum", "queue", "embedding", "head"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        MocoV2Config.model_validate_json(json.dumps(stated))


def test_a_queue_shorter_than_the_keys_of_a_step_is_refused() -> None:
    plan = Plan(10, 20, 200)
    build(plan)
    with pytest.raises(ValueError, match=r"queue: got a length of 20, wanted at least 40"):
        build(plan, symmetric=True)
    with pytest.raises(ValueError, match=r"queue: got a length of 19, wanted at least 20"):
        build(plan, queue=19)
