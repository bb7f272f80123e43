"""DINO: the paper's code over several steps, lightly's loss, schedules, what each collapse shows, configs."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.heads.prototypes import WeightNormPrototypes
from mmssl.objectives.dino import DinoConfig, DinoObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

K = 7
CONFIG: dict[str, Any] = {
    "kind": "dino", "modality": "picture", "view": "crop", "local_view": "small", "local_views": 2, "momentum": 0.9,
    "temperature": 0.25, "teacher_temperature": 0.125, "targets": {"kind": "centring"}, "prototypes": K, "embedding": 5,
    "head": {"layers": 3, "hidden": 12, "norm": "none", "activation": "gelu"},
}  # fmt: skip
BATCH_NORM = {"head": CONFIG["head"] | {"norm": "batch"}}
SINKHORN = {"targets": {"kind": "sinkhorn", "iterations": 3}}
TWO = {"view": ["crop", "small"], "local_view": None, "local_views": 0}


@torch.no_grad()
def of_equal_samples(changes: dict[str, Any]) -> float:
    """The loss at the start of a learner of the contract, where all features are alike."""
    torch.manual_seed(0)
    config = DinoConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build(toys.encoders(), Plan.unknown()).double()
    x = F.normalize(torch.ones(1, 16, dtype=torch.float64), dim=-1)
    scores = F.normalize(objective.head(x), dim=-1) @ F.normalize(objective.prototypes.weight, dim=-1).T
    balanced = torch.full_like(scores, 1 / K)
    targets = balanced if changes.get("targets", {}).get("kind") == "sinkhorn" else (scores / 0.125).softmax(-1)
    return float(-(targets * (scores / 0.25).log_softmax(-1)).sum())


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, DinoObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = DinoConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan.unknown())
    return Learner({"picture": encoder}, objective), objective


def case(
    changes: dict[str, Any], reduction: Reduction, loss: float, absent: dict[str, tuple[int, ...]] | None = None
) -> Case:
    return Case(json.dumps(CONFIG | changes), reduction, {"dino": loss}, absent or {})


LN_K = math.log(K)  # batch norm makes zeros of samples that are alike
PATCHES = {"patches": {"mask": "mask", "targets": {"kind": "centring"}}}
OWN = {
    "patches": {
        "mask": "uneven", "targets": {"kind": "sinkhorn", "iterations": 3}, "head": {"layers": 2, "hidden": 9, "norm": "batch"},
        "prototypes": 6,
    },
    "koleo": 0.1,
}  # fmt: skip
SHARE = 15 / 16
"""Of pictures with a masked patch, in the views `uneven0` and `uneven1`."""
TOGETHER = -0.1 * 2 * math.log(1e-8 * 16**0.5 + 1e-8)
"""KoLeo's term of both global views if all features are alike."""
CASES = {
    "dino, patches": Case(
        json.dumps(CONFIG | PATCHES), Reduction.LOCAL, dict.fromkeys(("dino", "patches"), of_equal_samples(PATCHES))
    ),
    "dino, patches with a head and koleo": Case(
        json.dumps(CONFIG | BATCH_NORM | OWN),
        Reduction.STATISTIC,
        {"dino": LN_K, "patches": SHARE * math.log(6), "koleo": TOGETHER},
    ),
    "dino": case({}, Reduction.LOCAL, of_equal_samples({})),
    "dino, batch norm": case(BATCH_NORM, Reduction.STATISTIC, LN_K),
    "dino, sinkhorn": case(SINKHORN, Reduction.STATISTIC, of_equal_samples(SINKHORN)),
    "dino, two kinds": case(BATCH_NORM | TWO, Reduction.STATISTIC, LN_K),
    "dino, absent": case({}, Reduction.LOCAL, of_equal_samples({}), FIVE),
    "dino, sinkhorn, absent": case(SINKHORN | BATCH_NORM, Reduction.STATISTIC, LN_K, FIVE),
}


class PaperLoss:
    """DINOLoss of facebookresearch/dino, main_dino.py, with 2 global crops first."""

    def __init__(self) -> None:
        self.center = torch.zeros(1, K, dtype=torch.float64)

    def __call__(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        total, terms = torch.zeros((), dtype=torch.float64), 0
        for iq, q in enumerate(F.softmax((t - self.center) / 0.125, dim=-1) for t in teacher):
            for v, s in enumerate(student):
                if v == iq:
                    continue
                total = total + torch.sum(-q * F.log_softmax(s / 0.25, dim=-1), dim=-1).mean()
                terms += 1
        self.center = self.center * 0.9 + torch.cat(teacher).mean(0, keepdim=True) * 0.1
        return total / terms


class PaperNetwork(nn.Module):
    """Encoder, and a head as DINOHead of facebookresearch/dino with `norm_last_layer=True`."""

    def __init__(self, encoder: nn.Module, mlp: nn.Module, prototypes: WeightNormPrototypes) -> None:
        super().__init__()
        self.encoder, self.mlp = copy.deepcopy(encoder), copy.deepcopy(mlp)
        count, embedding = prototypes.weight.shape
        self.last = parametrizations.weight_norm(nn.Linear(embedding, count, bias=False).double())
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad_(False)
        self.last.parametrizations.weight.original1.data.copy_(prototypes.weight.data)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        embedded = F.normalize(self.mlp(torch.cat([self.encoder(x).pooled for x in views])), dim=-1)
        return list(self.last(embedded).chunk(len(views)))

    def named(self) -> dict[str, Tensor]:
        kept = [*self.encoder.parameters(), *self.mlp.parameters(), self.last.parametrizations.weight.original1]
        return {str(number): x.detach().clone() for number, x in enumerate(kept)}


def train_as_the_paper(learner: Learner, loss: Callable[[list[Tensor], list[Tensor]], Tensor], steps: int) -> Any:
    """Losses; parameters of student and teacher after the steps."""
    objective = learner.objective
    student = PaperNetwork(learner.encoders["picture"], objective.head, objective.prototypes)
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    losses = []
    for step in range(steps):
        views = toys.batch(6, step)["picture"]
        crops = [views[name] for name in ("crop0", "crop1", "small0", "small1")]
        with torch.no_grad():
            targets = teacher(crops[:2])
        value = loss(targets, student(crops))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * fast)
        losses.append(value.item())
    return losses, student.named(), teacher.named()


def train(learner: Learner, steps: int, first: int = 0) -> list[float]:
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    losses = []
    for step in range(first, first + steps):
        out, latents = learner(toys.batch(6, step), step, 10)
        optimizer.zero_grad()
        out.total.backward()
        ctx = learner.context(step, 10)
        learner.objective.before_update(ctx)
        optimizer.step()
        learner.after_update({name: x.detach() for name, x in latents.items()} | out.kept, ctx)
        losses.append(out.terms["dino"].item())
    return losses


def check_equal(changes: dict[str, Any], loss: Any) -> None:
    """Losses, centre, and all parameters after four steps. Temperatures are exact in float32, which lightly uses for one."""
    learner, objective = build(**changes)
    learner.double()
    losses, student, teacher = train_as_the_paper(learner, loss, 4)
    assert train(learner, 4) == pytest.approx(losses, rel=1e-10)
    torch.testing.assert_close(objective.targets.centre, loss.center.flatten())
    encoder, prototypes = learner.teachers["picture"].network, objective.teacher_prototypes.network
    own = [*learner.encoders["picture"].parameters(), *objective.head.parameters(), objective.prototypes.weight]
    followers = [*encoder.parameters(), *objective.teacher_head.network.parameters(), *prototypes.parameters()]
    torch.testing.assert_close(dict(enumerate(own)), {int(key): x for key, x in student.items()})
    torch.testing.assert_close(dict(enumerate(followers)), {int(key): x for key, x in teacher.items()})


@pytest.mark.parametrize("changes", [{}, BATCH_NORM], ids=["none", "batch norm"])
def test_equals_the_code_of_the_paper(changes: dict[str, Any]) -> None:
    check_equal(changes, PaperLoss())


def test_equals_lightly() -> None:
    oracle = pytest.importorskip("lightly.loss", reason="the extra `oracles` is not installed")
    check_equal({}, oracle.DINOLoss(K, teacher_temp=0.125, student_temp=0.25).double())


def test_teacher_sees_global_views_and_each_network_is_called_once() -> None:
    learner, _ = build()
    calls: dict[str, int] = {}
    for name, network in (("student", learner.encoders["picture"]), ("teacher", learner.teachers["picture"])):
        network.register_forward_hook(lambda module, inputs, output, name=name: calls.update({name: len(inputs[0])}))
    learner(toys.batch(3))
    assert calls == {"student": 4 * 3, "teacher": 2 * 3}


def test_prototypes_stay_while_they_are_frozen() -> None:
    plan = Plan(10, 6, 12)
    learner, objective = build(plan=plan, frozen_prototypes="1 epochs")
    assert objective.frozen_steps == 2
    before = objective.prototypes.weight.detach().clone()
    train(learner, 2)
    assert torch.equal(objective.prototypes.weight, before)
    train(learner, 1, first=2)
    assert not torch.equal(objective.prototypes.weight, before)


def test_temperature_and_momentum_follow_their_schedules() -> None:
    plan = Plan(10, 6, 60)
    rising = {
        "teacher_temperature": {"kind": "linear", "start": 0.1, "final": 0.3, "over": "4 steps"},
        "momentum": {"kind": "cosine", "start": 0.5, "final": 1.0},
    }
    learner, objective = build(plan=plan, **rising)
    batch = toys.batch(6)
    for step, temperature in ((0, 0.1), (2, 0.2), (4, 0.3), (9, 0.3)):
        expected = build(teacher_temperature=temperature)[0](batch)[0].total
        torch.testing.assert_close(learner(batch, step, 10)[0].total, expected)
    assert objective.teachers() == {"picture": objective.teacher_head.momentum}
    assert objective.teacher_head.momentum(5) == pytest.approx(0.75)


def test_the_centre_of_accumulated_micro_batches_is_that_of_the_batch() -> None:
    whole, centres = toys.batch(6), []
    for size in (6, 4):
        learner, objective = build()
        kept = [out.kept for out, _ in (learner(part) for part in whole.chunks(size)) if out is not None]
        objective.after_update({name: torch.cat([part[name] for part in kept]) for name in kept[0]}, learner.context())
        centres.append(objective.targets.centre)
    torch.testing.assert_close(centres[0], centres[1])
    assert centres[0].abs().max() > 1e-3


def test_the_teacher_is_evaluated() -> None:
    learner, _ = build()
    assert learner.networks()["picture"] is learner.teachers["picture"].network


def metrics(latents: dict[str, Tensor], **changes: Any) -> dict[str, float]:
    learner, objective = build(**changes)
    objective.head, objective.teacher_head.network = nn.Identity(), nn.Identity()
    objective.prototypes.weight.data = torch.eye(K)
    objective.teacher_prototypes.network.weight.data = torch.eye(K)
    out = learner.criterion(latents, learner.context())
    return {"loss": out.total.item()} | {name: x.item() for name, x in out.metrics.items()}


def latents(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    names = ("crop0", "crop1", "small0", "small1")
    return dict.fromkeys(names, student) | {f"teacher/{name}": teacher for name in names[:2]}


def test_metrics_tell_the_collapses_from_a_healthy_run() -> None:
    uniform, one = torch.ones(K, K), torch.eye(K)[:1].expand(K, K)
    fixed = {"prototypes_used_least": 1.5, "chance_loss": LN_K}
    found = metrics(latents(uniform, uniform))
    assert found == pytest.approx(
        {"loss": LN_K, "target_entropy": LN_K, "kl": 0, "prototypes_used": K, **fixed}, abs=1e-5
    )
    sharp = {"teacher_temperature": 0.02, "temperature": 0.02}
    found = metrics(latents(one, one), **sharp)
    assert found == pytest.approx({"loss": 0, "target_entropy": 0, "kl": 0, "prototypes_used": 1, **fixed}, abs=1e-5)
    found = metrics(latents(torch.eye(K), torch.eye(K)), **sharp)
    assert found == pytest.approx({"loss": 0, "target_entropy": 0, "kl": 0, "prototypes_used": K, **fixed}, abs=1e-5)
    assert metrics(latents(one, uniform), **sharp)["kl"] == pytest.approx(LN_K, abs=1e-5)


def test_sinkhorn_balances_what_centring_leaves() -> None:
    teacher = F.normalize(torch.eye(K) + 3 * torch.eye(K)[:1], dim=-1)
    sharp = {"teacher_temperature": 0.05}
    centred, balanced = (
        metrics(latents(teacher, teacher), **sharp),
        metrics(latents(teacher, teacher), **sharp, **SINKHORN),
    )
    assert centred["prototypes_used"] < 1.1
    assert balanced["prototypes_used"] > 6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"local_view": None}, "wanted both or neither"),
        ({"local_views": 0}, "wanted both or neither"),
        ({"local_view": "crop"}, "a kind of the global views"),
        ({"view": ["crop", "crop"]}, "wanted two different kinds"),
        ({"temperature": 0}, "greater than 0"),
        ({"teacher_temperature": 0}, "wanted above 0"),
        ({"teacher_temperature": {"kind": "linear", "final": 0.07}}, "without start"),
        ({"momentum": 1.5}, "got 1.5, wanted at most 1"),
        ({"prototypes": 1}, "greater than or equal to 2"),
        ({"targets": {"kind": "sinkhorn", "momentum": 0.9}}, "momentum"),
        ({"targets": {"kind": "centring", "momentum": 1.0}}, "less than 1"),
        ({"frozen_prototypes": "an epoch"}, "wanted a number and a unit"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


def test_what_the_method_needs_is_stated() -> None:
    for name in ("temperature", "teacher_temperature", "momentum", "targets"):
        without = {key: value for key, value in CONFIG.items() if key != name}
        with pytest.raises(ValidationError, match=name):
            DinoConfig.model_validate_json(json.dumps(without))


def test_parts_longer_than_the_run_are_refused() -> None:
    plan = Plan(10, 6, 60).below("objective")
    with pytest.raises(RecipeError, match=r"objective\.frozen_prototypes '11 steps' \(11 steps\): longer than the run"):
        build(plan=plan, frozen_prototypes="11 steps")
    long = {"kind": "linear", "start": 0.04, "final": 0.07, "over": "2 epochs"}
    with pytest.raises(RecipeError, match=r"objective\.teacher_temperature\.over '2 epochs' \(20 steps\)"):
        build(plan=plan, teacher_temperature=long)


def test_masked_patches_cost_what_the_authors_say() -> None:
    """iBOT's loss with shared heads: DINO's from masked crops, and the assignments of masked patches, each picture alike."""
    learner, objective = build(**PATCHES | {"patches": PATCHES["patches"] | {"mask": "uneven", "weight": 0.5}})
    learner.double().eval()
    batch = toys.batch(6)
    student, teacher = learner.encoders["picture"], learner.teachers["picture"].network
    head = lambda x: objective.prototypes(F.normalize(objective.head(x), dim=-1))  # noqa: E731
    out, latents = learner(batch)
    total, pictures = 0.0, 0
    for number in range(2):
        crop, mask = (batch["picture"][f"{kind}{number}"] for kind in ("crop", "uneven"))
        seen = student(crop, replace=(mask, objective.patches.mask_token))
        torch.testing.assert_close(latents[f"crop{number}"], seen.pooled)
        given = (head(teacher(crop).tokens) / 0.125).softmax(-1)  # the teacher's head is the student's at the start
        costs = -(given * (head(seen.tokens) / 0.25).log_softmax(-1)).sum(-1)
        for cost, masked in zip(costs, mask, strict=True):
            total += float(cost[masked].detach().sum() / masked.sum().clamp(min=1))
            pictures += 1
    assert out.terms["patches"].item() == pytest.approx(0.5 * total / pictures, rel=1e-10)
    assert 1 <= out.metrics["patch_prototypes_used"] <= K
    learner.after_update({name: x.detach() for name, x in (latents | out.kept).items()}, learner.context())
    assert objective.patches.targets.centre.any()
    assert not torch.equal(objective.patches.targets.centre, objective.targets.centre)


def test_masks_of_other_patches_and_half_a_head_are_refused() -> None:
    learner, objective = build(**PATCHES | {"patches": PATCHES["patches"] | {"mask": "small"}})
    with pytest.raises(ValueError, match=r"got masks torch.uint8 .* wanted bool \[4, 16\]"):
        objective.check_views(toys.batch(4), learner.context())
    with pytest.raises(ValidationError, match="got one of head and prototypes"):
        build(**{"patches": PATCHES["patches"] | {"prototypes": 5}})
