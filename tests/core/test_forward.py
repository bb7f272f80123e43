"""Views are encoded once in a step; absent rows are not encoded and leave no trace in statistics; parameters have gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.batch_norm import SyncBatchNorm, synchronise_batch_norm
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.teacher import Teacher
from tests.distributed.processes import Processes

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
PRESENT = torch.tensor([True, False, True, True, False, True])
NOBODY = torch.zeros(6, dtype=torch.bool)


class Net(Encoder):
    """[B, 4] -> pooled [B, 3], tokens [B, 2, 3] unless only pooled is read, hidden states; notes what it is given."""

    width = 3

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), norm(5), nn.ReLU(), nn.Linear(5, 3))
        self.calls: list[dict[str, Any]] = []

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, **asked: Any) -> Features:
        self.calls.append({"x": x, **asked})
        pooled = self.net(x)
        tokens = None if asked["pooled_only"] else torch.stack([pooled, 2 * pooled], 1)
        sign = -1 if asked.get("mlps") else 1
        hidden = tuple(sign * pooled[:, None] + k for k in range(asked.get("hidden", 0)))
        return Features(pooled, tokens, hidden=hidden or None)

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.parameters()]]


def context(net: Net, optional: bool = False, whole: bool = False, **more: Any) -> StepContext:
    def some(yes: bool) -> frozenset[str]:
        return frozenset({"thing"} if yes else ())

    return StepContext({"thing": net}, optional=some(optional), whole=some(whole), **more)


def batch(x: Tensor = X, y: Tensor = Y, present: Tensor | None = None) -> Batch:
    views = {"thing": {"a0": x, "a1": y, "small0": x[:, :4].clone()}}
    return Batch(views, torch.arange(6), present={} if present is None else {"thing": present})


def pooled(ctx: StepContext, one: Batch, *views: str, **asked: Any) -> list[Tensor]:
    return [found.pooled for found in ctx.features(one, "thing", views, pooled_only=True, **asked)]


def test_views_of_one_shape_are_encoded_in_one_call_and_each_once_in_a_step() -> None:
    net, one = Net(), batch()
    ctx = context(net)
    first = pooled(ctx, one, "a0", "a1")
    assert [len(call["x"]) for call in net.calls] == [12]
    assert torch.equal(torch.cat(first), net.net(torch.cat([X, Y])))
    again = pooled(ctx, one, "a1")
    assert again[0] is first[1]
    (more,) = pooled(ctx, one, "small0")  # an equal view under another name is another view
    assert len(net.calls) == 2
    torch.testing.assert_close(more, first[0])
    pooled(context(net), one, "a0")
    assert len(net.calls) == 3, "another step encodes again"


@pytest.mark.parametrize("together", [True, False])
def test_a_view_that_is_named_twice_is_encoded_twice(together: bool) -> None:
    """With other noise each time; one of the two passes serves whoever asks for the view once, before or after."""
    net, one = Net(), batch()
    net.net.append(nn.Dropout(0.5))
    ctx = context(net)
    first, second = pooled(ctx, one, "a0", "a0", together=together)
    assert [len(call["x"]) for call in net.calls] == ([12] if together else [6, 6])
    assert not torch.equal(first, second)
    assert pooled(ctx, one, "a0")[0] is first
    again = pooled(ctx, one, "a0", "a1", "a0")
    assert (again[0] is first, again[2] is second) == (True, True)

    net.calls.clear()
    ctx = context(net)
    (alone,) = pooled(ctx, one, "a0")
    third, fourth = pooled(ctx, one, "a0", "a0", together=together)
    assert [len(call["x"]) for call in net.calls] == [6, 6]
    assert third is alone
    assert not torch.equal(third, fourth)


def test_views_of_two_shapes_are_encoded_in_two_calls() -> None:
    class Mean(Net):
        def forward(self, x: Tensor, **asked: Any) -> Features:
            self.calls.append({"x": x})
            return Features(x.flatten(1).mean(1, keepdim=True))

    net = Mean()
    views = {"thing": {"a0": torch.ones(2, 4), "b0": torch.ones(2, 8), "a1": torch.zeros(2, 4)}}
    found = pooled(context(net), Batch(views, torch.arange(2)), "a0", "b0", "a1")
    assert [call["x"].shape for call in net.calls] == [(4, 4), (2, 8)]
    assert [float(x[0, 0]) for x in found] == [1, 1, 0]


def test_apart_means_one_call_for_each_view() -> None:
    net = Net()
    pooled(context(net), batch(), "a0", "a1", together=False)
    assert [len(call["x"]) for call in net.calls] == [6, 6]


def test_features_are_shared_under_batch_norm_only_by_an_equal_group() -> None:
    net, one = Net(nn.BatchNorm1d), batch()
    ctx = context(net)
    both = pooled(ctx, one, "a0", "a1")
    (alone,) = pooled(ctx, one, "a0")
    assert len(net.calls) == 2
    assert not torch.allclose(alone, both[0])
    assert pooled(ctx, one, "a0", "a1")[0] is both[0]
    net.eval()
    ctx = context(net)
    pooled(ctx, one, "a0", "a1")
    pooled(ctx, one, "a0")
    assert len(net.calls) == 3, "running statistics couple nothing"


def test_where_some_objective_reads_tokens_all_share_the_pass_that_gives_them() -> None:
    net, one = Net(), batch()
    ctx = context(net, whole=True)
    first = pooled(ctx, one, "a0")
    (full,) = ctx.features(one, "thing", ["a0"])
    assert len(net.calls) == 1
    assert full.pooled is first[0]
    assert full.tokens is not None
    apart = context(net)
    pooled(apart, one, "a0")
    assert apart.features(one, "thing", ["a0"])[0].tokens is not None
    assert len(net.calls) == 3


def test_hidden_states_serve_requests_of_fewer() -> None:
    net, one = Net(), batch()
    ctx = context(net)
    (three,) = ctx.features(one, "thing", ["a0"], hidden=3)
    (two,) = ctx.features(one, "thing", ["a0"], hidden=2)
    (none,) = ctx.features(one, "thing", ["a0"])
    assert len(net.calls) == 1
    assert three.hidden is not None
    assert two.hidden is not None
    assert [id(x) for x in two.hidden] == [id(x) for x in three.hidden[-2:]]
    assert none.hidden is None
    ctx.features(one, "thing", ["a0"], hidden=4)
    assert len(net.calls) == 2


def test_hidden_states_are_shared_whoever_asks_first() -> None:
    net, one = Net(), batch()
    ctx = context(net, layers={"student": {"thing": 3}})
    (none,) = ctx.features(one, "thing", ["a0"])
    (two,) = ctx.features(one, "thing", ["a0"], hidden=2)
    (three,) = ctx.features(one, "thing", ["a0"], hidden=3)
    assert len(net.calls) == 1
    assert none.hidden is None
    assert two.hidden is not None
    assert three.hidden is not None
    assert [id(x) for x in two.hidden] == [id(x) for x in three.hidden[-2:]]
    assert len(three.hidden) == 3


def test_outputs_of_mlps_are_not_taken_for_those_of_blocks() -> None:
    net = Net()
    ctx = context(net)
    (of_mlps,) = ctx.features(batch(), "thing", ["a0"], hidden=2, mlps=True)
    (of_blocks,) = ctx.features(batch(), "thing", ["a0"], hidden=2)
    (pooled,) = ctx.features(batch(), "thing", ["a0"], mlps=True, pooled_only=True)
    assert of_mlps.hidden is not None
    assert of_blocks.hidden is not None
    assert torch.equal(of_mlps.hidden[0], -of_blocks.hidden[0])
    assert pooled.hidden is None
    assert [call.get("mlps", False) for call in net.calls] == [True, False], "features alone are those of any pass"


def test_masks_and_kept_tokens_reach_the_encoder_and_separate_passes() -> None:
    net, one = Net(), batch()
    ctx, value = context(net), torch.zeros(3)
    masks, keeps = torch.rand(2, 6, 2) > 0.5, torch.zeros(2, 6, 1, dtype=torch.int64)
    ctx.features(one, "thing", ["a0", "a1"], replace=([*masks], value))
    assert torch.equal(net.calls[0]["replace"][0], masks.flatten(0, 1))
    assert net.calls[0]["replace"][1] is value
    ctx.features(one, "thing", ["a0", "a1"], keep=[*keeps])
    assert net.calls[1]["keep"].shape == (12, 1)
    pooled(ctx, one, "a0")
    assert len(net.calls) == 3


def test_a_pass_without_graph_does_not_stand_for_one_with_it() -> None:
    net, one = Net(), batch()
    ctx = context(net)
    with torch.no_grad():
        pooled(ctx, one, "a0")
    assert pooled(ctx, one, "a0")[0].requires_grad


def test_the_teacher_is_another_network_without_gradient() -> None:
    net, one = Net(), batch()
    teacher = Teacher(net, lambda step: 0.5)
    with torch.no_grad():
        net.net[-1].weight.add_(1)
    ctx = context(net, teachers={"thing": teacher})
    (student,), (averaged,) = pooled(ctx, one, "a0"), pooled(ctx, one, "a0", network="teacher")
    assert student.requires_grad
    assert not averaged.requires_grad
    assert not torch.allclose(student, averaged)
    with pytest.raises(ValueError, match=r"teacher of 'thing'.*names its teachers in teachers\(\)"):
        pooled(context(net), one, "a0", network="teacher")


def test_only_present_rows_are_encoded() -> None:
    net, other = Net(nn.BatchNorm1d), Net(nn.BatchNorm1d)
    (got,) = pooled(context(net, optional=True), batch(present=PRESENT), "a0")
    assert torch.equal(net.calls[0]["x"], X[PRESENT])
    assert torch.equal(got[PRESENT], other.net(X[PRESENT]))
    assert (got[~PRESENT] == 0).all()
    assert all(torch.equal(buffer, other.get_buffer(name)) for name, buffer in net.named_buffers())
    blank = batch(X.masked_fill(~PRESENT[:, None], 1e6), present=PRESENT)
    assert torch.equal(pooled(context(Net(nn.BatchNorm1d), optional=True), blank, "a0")[0], got)


def test_tokens_and_hidden_states_of_absent_rows_are_zeros() -> None:
    (found,) = context(Net(), optional=True).features(batch(present=PRESENT), "thing", ["a0"], hidden=2)
    for x in (found.tokens, *(found.hidden or ())):
        assert x is not None
        assert len(x) == 6
        assert (x[~PRESENT] == 0).all()
        assert (x[PRESENT] != 0).any()


def test_absent_samples_of_a_modality_that_is_not_optional_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 of 6 samples have no 'thing', and it is not optional"):
        pooled(context(Net()), batch(present=PRESENT), "a0")
    ctx = context(Net(), optional=True)
    assert torch.equal(ctx.presence(batch(present=PRESENT), "thing")["present"], PRESENT)
    assert ctx.presence(batch(), "thing")["present"].all()
    assert context(Net()).presence(batch(), "thing") == {}


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_without_any_every_parameter_has_a_gradient_of_zero_and_statistics_stay(norm: type[nn.Module]) -> None:
    net = Net(norm)
    net.net[0].eval()  # somebody's choice, which must outlive the call
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    (got,) = pooled(context(net, optional=True), batch(torch.zeros(6, 4), present=NOBODY), "a0")
    assert got.shape == (6, 3)
    assert (got == 0).all()
    F.normalize(got, dim=-1).sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert [module.training for module in net.net] == [False, True, True, True]


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, SyncBatchNorm])
def test_layers_that_other_processes_wait_for_stay_in_training(kind: type[nn.Module]) -> None:
    class Waiting(Net):
        def forward(self, x: Tensor, **asked: Any) -> Features:
            self.calls.append({"training": (self.layer.training, self.plain.training)})
            return Features(x)

    net = Waiting()
    net.layer, net.plain = kind(5), nn.BatchNorm1d(5)
    pooled(context(net, optional=True), batch(present=NOBODY), "a0")
    assert net.calls == [{"training": (True, False)}]
    assert (net.layer.training, net.plain.training) == (True, True)


def on_one_of_two() -> list[Tensor]:
    """The first process has four rows, the second none."""
    net = Net(nn.BatchNorm1d)
    synchronise_batch_norm(net)
    here = PRESENT if distributed.is_main() else NOBODY
    one = batch(X.masked_fill(~here[:, None], 0), present=here)
    pooled(context(net, optional=True), one, "a0")[0].sum().backward()
    return [*net.buffers(), *(distributed.total_detached(p.grad) for p in net.parameters() if p.grad is not None)]


def test_a_process_without_any_keeps_no_other_waiting(two_processes: Processes) -> None:
    first, second = two_processes.run(on_one_of_two, [()] * 2)
    assert len(first) == len(second) == 3 + 6
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
