"""Cached gradients in a run: the same parameters as a plain run, bit-exact resume, precision, refusals."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mmssl.core.context import StepContext
from mmssl.core.encoder import Features
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Latents, Learner, LossOutput, Reduction
from mmssl.training.run import Run
from mmssl.training.steps.cached import _Remembered
from tests.distributed.processes import Processes
from tests.training.toys import Agree, Match, Stream, Tower, assert_equal, make_batch, make_learner, make_run, tensors

CACHED = {"kind": "cached", "micro_batches": 4}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam divides small gradients by their own size, so that the last bits of a sum become visible.
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def trained(folder: str, total: int = 3, objective: type[Agree] = Match, **changes: Any) -> dict[str, Tensor]:
    run = make_run(Path(folder), total, learner=make_learner(objective, noise=False), **changes)
    run.train()
    assert run.state.skipped_steps == 0
    return tensors(run)


@pytest.mark.parametrize("objective", [Agree, Match])
def test_a_run_gives_the_parameters_of_a_plain_run(tmp_path: Path, objective: type[Agree]) -> None:
    plain = trained(str(tmp_path / "plain"), objective=objective)
    assert_close(trained(str(tmp_path / "cached"), objective=objective, step=CACHED), plain)
    start = make_learner(objective, noise=False).state_dict()
    moved = {name: float((plain[f"learner.{name}"] - x).abs().max()) for name, x in start.items()}
    assert min(moved.values()) > 1e-4


def trained_cached(folder: str, precision: str) -> dict[str, Tensor]:
    step = {"kind": "cached", "micro_batches": 3}
    return trained(folder, 6, step=step, precision=precision, optimizer={"kind": "adamw", "lr": 0.01, "eps": 1e-3})


@pytest.mark.parametrize(("precision", "exact"), [("fp32", 1e-5), ("bf16", 3e-3)])
def test_two_processes_train_as_one(two_processes: Processes, tmp_path: Path, precision: str, exact: float) -> None:
    """In bfloat16 the gradients of parts are rounded before they are summed."""
    plain = trained(
        str(tmp_path / "plain"), 6, precision=precision, optimizer={"kind": "adamw", "lr": 0.01, "eps": 1e-3}
    )
    first, second = two_processes.run(trained_cached, [(str(tmp_path / "two"), precision)] * 2)
    assert_equal(first, second)
    assert first.keys() == plain.keys()
    for name, x in plain.items():
        torch.testing.assert_close(first[name], x, rtol=exact, atol=exact, msg=lambda m, n=name: f"{n}: {m}")


class CutStream(Stream):
    """Cuts the power before step 6."""

    def act(self, step: int) -> None:
        if step == 6:
            raise ConnectionAbortedError


def noisy(seed: int = 0) -> Learner:
    """Dropout, and no batch normalisation."""
    learner = make_learner(Match, noise=False, seed=seed)
    for tower in learner.encoders.values():
        assert isinstance(tower, Tower)
        tower.dropout.p = 0.3
    return learner


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_exact(tmp_path: Path, precision: str) -> None:
    def run(name: str, seed: int = 0, **changes: Any) -> Run:
        return make_run(tmp_path / name, learner=noisy(seed), step=CACHED, precision=precision, **changes)

    whole = run("whole")
    whole.train()
    with pytest.raises(ConnectionAbortedError):
        run("cut", stream=CutStream()).train()
    resumed = run("cut", seed=99)
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))
    assert resumed.state.numbers() == whole.state.numbers()
    other = run("other")
    other.step.seed = 2
    other.train()
    assert not torch.equal(*(x.state.learner.objective.head.weight for x in (whole, other)))  # dropout matters here


def test_each_micro_batch_draws_its_own_numbers_twice(tmp_path: Path) -> None:
    run = make_run(tmp_path, learner=noisy(), step=CACHED)
    masks: list[Tensor] = []
    tower = run.state.learner.encoders["a"]
    tower.norm = nn.Identity()
    nn.init.zeros_(tower.first.weight), nn.init.ones_(tower.first.bias)
    tower.dropout.register_forward_hook(lambda module, inputs, output: masks.append(output.detach() == 0))
    run.state.learner.train()
    run.step.gradients(make_batch(0, 8), 0, 10)
    first, second = masks[:4], masks[4:]
    assert len(second) == 4
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 4
    masks.clear()
    run.step.gradients(make_batch(0, 8), 1, 10)
    assert not torch.equal(masks[0], first[0])


class Saved:
    """A tensor that a graph holds for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_one_graph_at_a_time(tmp_path: Path) -> None:
    """Graphs of earlier micro-batches are gone when the next is encoded, and the first pass has one graph only."""
    run = make_run(tmp_path, learner=noisy(), step=CACHED)
    tower = run.state.learner.encoders["a"]
    held: weakref.WeakSet[Saved] = weakref.WeakSet()
    alive: list[int] = []
    graphs: list[bool] = []

    def hold(tensor: Tensor) -> Saved:
        saved = Saved(tensor.detach())  # an output with its graph would hold itself
        held.add(saved)
        return saved

    def after(module: nn.Module, inputs: Any, output: Features) -> None:
        graphs.append(output.pooled.requires_grad)
        assert bool(len(held)) == graphs[-1]

    tower.register_forward_pre_hook(lambda module, inputs: alive.append(len(held)))
    tower.register_forward_hook(after)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda saved: saved.tensor):
        run.step.gradients(make_batch(0, 8), 0, 10)
    assert alive == [0] * 8
    assert graphs == [True, False, False, False, True, True, True, True]


class Both(Match):
    """The head works in both halves, `shift` in the criterion alone, and one latent has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(6, 6)
        self.asked: list[dict[str, bool]] = []

    def encode(self, batch: Any, ctx: StepContext) -> Latents:
        return {**super().encode(batch, ctx), "given": batch["a"]["view0"], "number": batch.index}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        self.asked.append({name: x.requires_grad for name, x in latents.items()})
        out = super().criterion({"a": self.shift(latents["a"]), "b": self.head(latents["b"])}, ctx)
        return LossOutput({**out.terms, "given": (self.shift(latents["given"]) - latents["a"]).square().mean()})


def found(learner: Learner) -> dict[str, Tensor]:
    gradients = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    return gradients


def test_parameters_of_both_halves_get_both_contributions(tmp_path: Path) -> None:
    learners = [make_learner(Both, noise=False).double() for _ in range(2)]
    plain = make_run(tmp_path / "1", learner=learners[0])
    cached = make_run(tmp_path / "2", learner=learners[1], step=CACHED)
    batch = make_batch(0, 8).map(lambda x: x.double() if x.is_floating_point() else x)
    for run in (plain, cached):
        run.step.gradients(batch, 0, 10)
    expected, got = (found(learner) for learner in learners)
    assert expected.keys() == got.keys() == dict(learners[0].named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    # The criterion cannot tell the difference: what has no gradient in a plain step has none here.
    assert learners[0].objective.asked == learners[1].objective.asked
    assert learners[1].objective.asked == [{"a": True, "b": True, "given": False, "number": False}]


def test_a_scaled_loss_gives_the_same_update_and_overflow_moves_nothing(tmp_path: Path) -> None:
    """fp16's scaler, driven on the CPU."""
    plain = make_run(tmp_path / "1", learner=noisy(), step=CACHED)
    scaled = make_run(tmp_path / "2", learner=noisy(), step=CACHED)
    scaler = scaled.launch.scaler = scaled.state.scaler = GradScaler("cpu", init_scale=1024.0)
    norms = [run.step(run.state, make_batch(0, 8)).scalars() for run in (plain, scaled)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert_close(tensors(scaled), tensors(plain))
    before = tensors(scaled)
    assert not scaled.step(scaled.state, make_batch(1, 8, poisoned=True)).finite
    assert_equal(tensors(scaled), before)
    assert scaler.get_scale() == 512


class Precise(Match):
    """Notes in which precision its halves work."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: set[torch.dtype] = set()
        self.seen: set[torch.dtype] = set()
        self.head.register_forward_hook(lambda module, inputs, output: self.heads.add(output.dtype))

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        assert not torch.is_autocast_enabled("cpu")
        self.seen |= {x.dtype for x in latents.values()}
        return super().criterion(latents, ctx)


def test_the_criterion_is_float32_under_autocast(tmp_path: Path) -> None:
    run = make_run(tmp_path, learner=make_learner(Precise, noise=False), step=CACHED, precision="bf16")
    assert run.step(run.state, make_batch(0, 8)).finite
    assert run.state.learner.objective.heads == {torch.bfloat16}
    assert run.state.learner.objective.seen == {torch.float32}


@pytest.mark.parametrize("reduction", list(Reduction))
def test_no_reduction_is_refused(tmp_path: Path, reduction: Reduction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Match, "reduction", reduction)
    run = make_run(tmp_path, learner=make_learner(Match, noise=False), step=CACHED)
    assert run.step(run.state, make_batch(0, 8)).finite


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=re.escape("BatchNorm1d 'encoders.a.norm' and 1 more like it: in training it normalises")
    ):
        make_run(tmp_path, learner=make_learner(noise=True), step=CACHED)
    learner = make_learner(noise=False)
    learner.objective.teacher = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(RecipeError, match=r"BatchNorm1d 'objective\.teacher': in training"):
        make_run(tmp_path, learner=learner, step=CACHED)
    moving = make_learner(noise=False)
    moving.encoders["b"].norm = nn.InstanceNorm1d(6, track_running_stats=True)
    with pytest.raises(RecipeError, match=r"InstanceNorm1d 'encoders\.b\.norm'"):
        make_run(tmp_path, learner=moving, step=CACHED)


def test_half_frozen_encoders_are_refused_too(tmp_path: Path) -> None:
    """They train, so their batch normalisation works in training mode."""
    learner = make_learner(noise=True)
    learner.encoders["b"].requires_grad_(False)
    learner.encoders["a"].norm.requires_grad_(False)
    with pytest.raises(RecipeError, match=r"'encoders\.a\.norm': in training"):
        make_run(tmp_path, learner=learner, step=CACHED)


def test_frozen_batch_normalisation_is_not_refused(tmp_path: Path) -> None:
    """It is in evaluation mode; looking for it leaves all modes as they were."""
    runs = []
    for name, changes in (("plain", {}), ("cached", {"step": CACHED})):
        learner = make_learner(Match, noise=True)
        for tower in learner.encoders.values():
            tower.requires_grad_(False)
        learner.objective.eval()
        runs.append(make_run(tmp_path / name, 3, learner=learner, **changes))
        assert (learner.objective.training, learner.encoders["a"].norm.training) == (False, True)
        runs[-1].train()
    ours, theirs = tensors(runs[1]), tensors(runs[0])
    assert_close(ours, theirs)
    assert torch.equal(ours["learner.encoders.a.norm.running_mean"], torch.zeros(6))
    assert not torch.equal(ours["learner.objective.head.weight"], make_learner(Match).objective.head.weight)


class Sum(Tower):
    """Pools a view of its tokens, with a learned value in the place of those under a mask."""

    depth = 2

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        self.check_hidden(hidden)
        x = self.last(x)
        tokens = (x if replace is None else torch.where(replace[0], replace[1], x))[:, None].expand(-1, 50, -1)
        return Features(tokens.contiguous()[:, 0], tokens, hidden=(tokens,) * hidden or None)


def test_what_is_remembered_of_a_frozen_encoder() -> None:
    """Pooled features alone, in the order of the calls; nothing through which a gradient flows."""
    encoder = Sum(noise=False).requires_grad_(False).eval()
    calls: list[None] = []
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(None))
    stand_in = _Remembered(encoder)
    x, value = torch.randn(3, 6), torch.randn(6, requires_grad=True)
    mask = torch.ones(3, 1, dtype=torch.bool)
    first = [stand_in(x, pooled_only=True).pooled, stand_in(2 * x[:2], pooled_only=True).pooled]
    stand_in(x), stand_in(x, replace=(mask, value), pooled_only=True)
    stand_in(x.clone().requires_grad_(), pooled_only=True)
    stand_in(x, hidden=2, pooled_only=True)
    kept = list(stand_in._pooled)
    assert [x.untyped_storage().nbytes() for x in kept] == [3 * 6 * 4, 2 * 6 * 4]
    stand_in.recalling = True
    calls.clear()
    second = [stand_in(x, pooled_only=True).pooled, stand_in(2 * x[:2], pooled_only=True).pooled]
    assert_equal(dict(enumerate(first)), dict(enumerate(second)))
    assert not calls
    assert stand_in(x).tokens is not None
    assert len(stand_in(x, hidden=2, pooled_only=True).hidden or ()) == 2
    learned = x.clone().requires_grad_()
    stand_in(learned, pooled_only=True).pooled.sum().backward()
    torch.testing.assert_close(learned.grad, encoder.last.weight.sum(0).expand(3, -1))
    stand_in(x, replace=(mask, value), pooled_only=True).pooled.sum().backward()
    torch.testing.assert_close(value.grad, torch.full((6,), 3.0))
    assert len(calls) == 4
    assert not stand_in._pooled
    assert (stand_in.width, stand_in.grid, stand_in.depth) == (6, None, 2)
    assert (stand_in.capabilities, stand_in.trim) == (frozenset(), None)
    assert torch.equal(stand_in.prepare(x), x)
    assert stand_in.layers() == encoder.layers()


def test_encoders_are_themselves_again_after_an_error(tmp_path: Path) -> None:
    learner = make_learner(Match, noise=False)
    learner.encoders["a"].requires_grad_(False)
    run = make_run(tmp_path, learner=learner.train(), step=CACHED)
    learner.encoders["b"].register_forward_hook(lambda module, inputs, output: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.step.gradients(make_batch(0, 8), 0, 10)
    assert learner.context().encoders["a"] is learner.encoders["a"]
