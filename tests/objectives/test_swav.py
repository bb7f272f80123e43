"""SwAV: the paper's training with its queue, lightly's loss, what is frozen and normalised, configs."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.sinkhorn import sinkhorn
from mmssl.objectives.swav import SwavConfig, SwavObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

K, E, SIZE = 7, 5, 6
CONFIG: dict[str, Any] = {
    "kind": "swav", "modality": "picture", "view": "crop", "local_view": "small", "local_views": 2, "temperature": 0.2,
    "code_temperature": 0.1, "prototypes": K, "embedding": E, "head": {"layers": 2, "hidden": 12, "norm": "batch"},
}  # fmt: skip
QUEUE = {"queue": {"length": 12, "start": "0 steps"}}
NO_NORM = {"head": CONFIG["head"] | {"norm": "none"}}
TWO = {"view": ["crop", "small"], "local_view": None, "local_views": 0}
NAMES = ("crop0", "crop1", "small0", "small1")


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, SwavObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = SwavConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective), objective


@torch.no_grad()
def of_equal_samples(changes: dict[str, Any]) -> float:
    """The loss at the start of a learner of the contract, where all features are alike: every code is uniform."""
    torch.manual_seed(0)
    config = SwavConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build(toys.encoders(), Plan.unknown()).double()
    x = F.normalize(torch.ones(2, 16, dtype=torch.float64), dim=-1)
    scores = F.normalize(objective.head(x), dim=-1) @ objective.prototypes.weight.T
    return float(-(scores / 0.2).log_softmax(-1).mean())


def case(changes: dict[str, Any], absent: dict[str, tuple[int, ...]] | None = None) -> Case:
    return Case(json.dumps(CONFIG | changes), Reduction.STATISTIC, {"swav": of_equal_samples(changes)}, absent or {})


CASES = {
    "swav": case({}),
    "swav, queue": case(QUEUE),
    "swav, no batch norm": case(QUEUE | NO_NORM),
    "swav, two kinds": case(TWO),
    "swav, absent": case({"queue": {"length": 8, "start": "0 steps"}}, FIVE),
}


class Paper:
    """The training loop of facebookresearch/swav on one process, in plain torch: SGD, frozen prototypes, queue."""

    def __init__(self, learner: Learner, frozen: int, queue_start: int | None) -> None:
        objective = learner.objective
        self.encoder, self.head = copy.deepcopy(learner.encoders["picture"]), copy.deepcopy(objective.head)
        self.weight = nn.Parameter(objective.prototypes.weight.detach().clone())
        self.frozen, self.queue_start = frozen, queue_start
        self.queue: list[list[Tensor]] = [[], []]  # for each global view the batches of embeddings, the newest first
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.head.parameters(), self.weight]

    def step(self, number: int, views: dict[str, Tensor]) -> float:
        self.weight.data.copy_(F.normalize(self.weight.data, dim=1))
        pooled = torch.cat([self.encoder(views[name]).pooled for name in NAMES])
        embeddings = F.normalize(self.head(pooled), dim=1).chunk(4)
        scores = [x @ self.weight.T for x in embeddings]
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(2):
            among = scores[i].detach()
            if self.queue_start is not None and number >= self.queue_start:
                if len(self.queue[i]) * SIZE == 12:
                    among = torch.cat([torch.cat(self.queue[i]) @ self.weight.detach().T, among])
                self.queue[i] = [embeddings[i].detach(), *self.queue[i]][:2]
            plan = (among / 0.1).exp()
            for _ in range(3):
                plan = plan / plan.sum(0)
                plan = plan / plan.sum(1, keepdim=True)
            code = plan[-SIZE:]
            others = [v for v in range(4) if v != i]
            loss = loss - sum((code * (scores[v] / 0.2).log_softmax(1)).sum(1).mean() for v in others) / 3
        loss = loss / 2
        self.optimizer.zero_grad()
        loss.backward()
        if number < self.frozen:
            self.weight.grad = None
        self.optimizer.step()
        return loss.item()


def train(learner: Learner, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for step in range(steps):
        out, latents = learner(toys.batch(SIZE, step), step, 10)
        optimizer.zero_grad()
        out.total.backward()
        ctx = learner.context(step, 10)
        learner.objective.before_update(ctx)
        optimizer.step()
        learner.after_update({name: x.detach() for name, x in latents.items()} | out.kept, ctx)
        losses.append(out.terms["swav"].item())
    return losses


@pytest.mark.parametrize("queue_start", [None, 0, 1])
def test_equals_the_training_of_the_paper(queue_start: int | None) -> None:
    """Losses, all parameters and the queue after six steps; prototypes are frozen in the first two, the queue is full after two."""
    queue = {} if queue_start is None else {"queue": {"length": 12, "start": f"{queue_start} steps"}}
    learner, objective = build(Plan(10, SIZE, 60), frozen_prototypes="2 steps", **queue)
    learner.double()
    objective.prototypes.normalise()
    paper = Paper(learner, 2, queue_start)
    expected = [paper.step(number, toys.batch(SIZE, number)["picture"]) for number in range(6)]
    assert train(learner, 6) == pytest.approx(expected, rel=1e-10)
    paper.weight.data.copy_(F.normalize(paper.weight.data, dim=1))
    own = [*learner.encoders["picture"].parameters(), *objective.head.parameters(), objective.prototypes.weight]
    torch.testing.assert_close(own, paper.parameters())
    if queue_start is not None:
        assert objective.queue is not None
        found = torch.stack([objective.queue.rows[i : i + SIZE] for i in (0, SIZE)])  # two batches
        batches = [torch.cat([paper.queue[0][age], paper.queue[1][age]], 1) for age in range(2)]
        newest = (5 - queue_start) % 2
        torch.testing.assert_close(found, torch.stack(batches if newest == 0 else batches[::-1]))


def test_the_queue_changes_the_codes_only_when_it_is_full() -> None:
    without, _ = build()
    filling, _ = build(**QUEUE)
    waiting, objective = build(Plan(10, SIZE, 60), queue={"length": 12, "start": "3 steps"})
    losses = [train(learner.double(), 6) for learner in (without, filling, waiting)]
    same = [[a == b for a, b in zip(losses[0], other, strict=True)] for other in losses[1:]]
    assert same == [[True, True, False, False, False, False], [True, True, True, True, True, False]]
    assert objective.queue is not None
    assert sorted(objective.queue.steps.unique().tolist()) == [4, 5]


@pytest.mark.parametrize("queue", [False, True])
def test_equals_lightly(queue: bool) -> None:
    oracle = pytest.importorskip("lightly.loss", reason="the extra `oracles` is not installed")
    learner, objective = build(**(QUEUE if queue else {}))
    learner.double()
    if queue:
        train(learner, 3)
    views = toys.batch(SIZE, 9)["picture"]
    pooled = torch.cat([learner.encoders["picture"](views[name]).pooled for name in NAMES])
    scores = objective.prototypes(F.normalize(objective.head(pooled), dim=1)).chunk(4)
    rows = objective.queue.rows.chunk(2, dim=1) if objective.queue is not None else None
    loss = oracle.SwaVLoss(0.2, 3, 0.1)(
        list(scores[:2]), list(scores[2:]), None if rows is None else [objective.prototypes(x) for x in rows]
    )
    out, _ = learner(toys.batch(SIZE, 9), 3)
    torch.testing.assert_close(out.terms["swav"], loss[0])
    parameters = [p for p in learner.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(out.terms["swav"], parameters), torch.autograd.grad(loss, parameters)
    )


def test_prototypes_have_unit_length_at_the_start_and_after_every_step() -> None:
    learner, objective = build()
    ones = torch.ones(K)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), ones)
    before = objective.prototypes.weight.detach().clone()
    train(learner, 1)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), ones)
    assert not torch.equal(objective.prototypes.weight, before)


def metrics(features: Tensor) -> dict[str, float]:
    learner, objective = build()
    objective.head = nn.Identity()
    objective.prototypes.weight.data = torch.eye(K)
    out = learner.criterion(dict.fromkeys(NAMES, features), learner.context())
    return {"loss": out.total.item()} | {name: x.item() for name, x in out.metrics.items()}


def test_metrics_tell_a_collapse_from_prototypes_in_use() -> None:
    """Codes of equal samples are uniform, whatever their scores, while one prototype is predicted."""
    collapsed, healthy = metrics(torch.eye(K)[:1].expand(K, K)), metrics(torch.eye(K))
    assert collapsed["target_entropy"] == pytest.approx(math.log(K))
    assert collapsed["prototypes_used"] < 1.3
    assert healthy["prototypes_used"] == pytest.approx(K)
    assert healthy["target_entropy"] < 0.1
    assert healthy["loss"] < 0.1 < math.log(K) == pytest.approx(healthy["chance_loss"])
    codes = sinkhorn(torch.eye(K), 0.1, 3)
    assert healthy["target_entropy"] == pytest.approx(torch.special.entr(codes).sum(1).mean().item())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"local_view": None}, "wanted both or neither"),
        ({"local_view": "crop"}, "a kind of the global views"),
        ({"temperature": 0}, "greater than 0"),
        ({"code_temperature": 0}, "greater than 0"),
        ({"iterations": 0}, "greater than or equal to 1"),
        ({"prototypes": 1}, "greater than or equal to 2"),
        ({"queue": {"length": 12}}, "start"),
        ({"queue": {"length": 0, "start": "1 epochs"}}, "greater than 0"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


def test_what_does_not_fit_the_run_is_refused() -> None:
    plan = Plan(10, SIZE, 60).below("objective")
    with pytest.raises(ValueError, match="got a length of 5, wanted at least 6"):
        build(plan, queue={"length": 5, "start": "0 steps"})
    with pytest.raises(RecipeError, match=r"objective\.queue\.start '11 steps' \(11 steps\): longer than the run"):
        build(plan, queue={"length": 12, "start": "11 steps"})
    with pytest.raises(RecipeError, match=r"objective\.frozen_prototypes '2 epochs' \(20 steps\): longer than the run"):
        build(plan, frozen_prototypes="2 epochs")
