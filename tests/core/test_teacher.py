"""A teacher follows its student after finite steps, sees no dropout, and is shared by the objectives that ask for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features, freeze
from mmssl.core.forward import Network
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, Reduction
from mmssl.core.schedules import Schedule
from mmssl.core.teacher import Momentum, Teacher
from mmssl.objectives.weighted import WeightedObjective
from mmssl.training.steps.ema import Ema

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "scale")
ONES = {name: Schedule.constant(1.0) for name in ("one", "two")}


def half(step: int) -> float:
    return 0.5


def rising(step: int) -> float:
    return step / 10


class Dropping(Encoder):
    """Dropout and batch norm: in training mode no two passes are equal."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.register_buffer("scale", torch.ones(()))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, **asked: object) -> Features:
        return Features(self.net(x))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.parameters()]]


class Follow(Objective):
    """Draws an encoder to its teacher; a head has a teacher too."""

    reduction = Reduction.LOCAL

    def __init__(self, momentum: Momentum = half, evaluated: Network = "teacher") -> None:
        super().__init__()
        self.momentum, self.network = momentum, evaluated
        self.head = nn.Linear(3, 2)
        self.teacher_head = Teacher(self.head, momentum)

    def needs(self) -> Needs:
        return {"thing": {"a": 1}}

    def teachers(self) -> Mapping[str, Momentum]:
        return {"thing": self.momentum}

    def evaluated(self) -> Mapping[str, Network]:
        return {"thing": self.network}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        (student,) = ctx.features(batch, "thing", ["a0"])
        (teacher,) = ctx.features(batch, "thing", ["a0"], network="teacher")
        return {"student": self.head(student.pooled), "teacher": self.teacher_head(teacher.pooled)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        return LossOutput({"far": (latents["student"] - latents["teacher"] - 1).square().mean()})


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def batch() -> Batch:
    return Batch({"thing": {"a0": X}}, torch.arange(5))


def make(momentum: Momentum = half) -> Learner:
    torch.manual_seed(0)
    return Learner({"thing": Dropping()}, Follow(momentum))


def step(learner: Learner, number: int = 0) -> None:
    loss, latents = learner(batch(), number, 10)
    loss.total.backward()
    torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], 0.1).step()
    learner.zero_grad()
    learner.after_update(latents, learner.context(number, 10))


def test_it_follows_by_the_momentum_of_the_step_and_copies_buffers_but_for_batch_norm() -> None:
    learner = make(rising)
    teacher = learner.teachers["thing"]
    before = [p.clone() for p in teacher.network.parameters()]
    step(learner, 7)
    for old, new, student in zip(
        before, teacher.network.parameters(), learner.encoders["thing"].parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.7 * old + 0.3 * student)
        assert not torch.equal(new, student) or torch.equal(old, student)
    assert not torch.equal(before[0], next(teacher.network.parameters()))
    own, student = teacher.network, learner.encoders["thing"]
    assert own.net[1].num_batches_tracked == student.net[1].num_batches_tracked == 1
    student.scale.fill_(3.0)
    step(learner, 8)
    assert own.scale == 3.0
    assert not torch.equal(own.net[1].running_mean, student.net[1].running_mean), "of its own outputs"
    head, follower = learner.objective.head, learner.objective.teacher_head.network
    assert not torch.equal(head.weight, follower.weight)
    assert not any(p.requires_grad for p in [*teacher.parameters(), *learner.objective.teacher_head.parameters()])


def test_it_is_in_evaluation_mode_whatever_is_asked() -> None:
    learner = make().train()
    first, second = (learner(batch())[1] for _ in range(2))
    assert torch.equal(first["teacher"], second["teacher"])
    assert not torch.equal(first["student"], second["student"])
    teacher = learner.teachers["thing"].network
    assert [m for m in teacher.modules() if m.training] == [teacher.net[1]], "batch norm sees the batch"
    assert learner.encoders["thing"].net[2].training
    learner.eval()
    assert not any(m.training for m in teacher.modules())


def test_a_state_dict_names_the_student_once() -> None:
    names = {name.split(".")[0] for name in make().state_dict()}
    assert names == {"encoders", "objective", "teachers"}
    assert sorted(n for n in make().state_dict() if "weight" in n and "head" in n) == [
        "objective.head.weight",
        "objective.teacher_head.network.weight",
    ]


def test_a_copy_of_a_learner_has_a_teacher_of_its_own_student() -> None:
    learner = make()
    other = copy.deepcopy(learner)
    assert other.teachers["thing"].student is other.encoders["thing"]
    assert other.objective.teacher_head.student is other.objective.head


def test_the_average_of_a_run_holds_the_teacher_as_it_is() -> None:
    learner = make()
    ema = Ema(learner, 0.9)
    for number in range(3):
        step(learner, number)
        ema.update(learner)
    for name, x in learner.state_dict().items():
        mine = ema.module.state_dict()[name]
        followed = name.startswith("teachers.") or "teacher_head" in name or name.endswith(BUFFERS)
        assert torch.equal(mine, x) == followed, name


def test_the_objective_says_which_network_is_measured() -> None:
    learner = make()
    assert learner.networks() == {"thing": learner.teachers["thing"].network}
    learner.objective.network = "student"
    assert learner.networks() == {"thing": learner.encoders["thing"]}


def test_children_of_a_sum_share_a_teacher_and_agree_on_its_momentum() -> None:
    torch.manual_seed(0)
    both = WeightedObjective({"one": Follow(), "two": Follow(evaluated="student")}, ONES)
    learner = Learner({"thing": Dropping()}, both)
    assert [*learner.teachers] == ["thing"]
    assert both.evaluated() == {}
    agreed = WeightedObjective({"one": Follow(), "two": Follow()}, ONES)
    assert agreed.evaluated() == {"thing": "teacher"}
    differ = WeightedObjective({"one": Follow(), "two": Follow(rising)}, ONES)
    with pytest.raises(ValueError, match="'one' and 'two' ask for a teacher of 'thing' with different momentum"):
        Learner({"thing": Dropping()}, differ)


def test_a_frozen_encoder_has_no_teacher() -> None:
    encoder = Dropping()
    freeze(encoder)
    with pytest.raises(ValueError, match=r"encoders\.thing is frozen, and the objective asks for its teacher"):
        Learner({"thing": encoder}, Follow())


def test_an_encoder_that_is_missing_has_no_teacher() -> None:
    with pytest.raises(ValueError, match="needs an encoder for 'thing'"):
        Learner({"other": Dropping()}, Follow())
