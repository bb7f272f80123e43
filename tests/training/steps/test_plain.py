"""One step: what it computes, in which order, in which precision; and that parts of a batch add up to the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mmssl.core.context import StepContext
from mmssl.core.errors import RecipeError
from mmssl.core.monitors import spread
from mmssl.core.objective import Latents, LossOutput, Reduction
from tests.training.toys import Agree, Drawing, Match, assert_equal, make_batch, make_learner, make_run, tensors

ACCUMULATED = {"kind": "accumulated", "micro_batches": 3}


def test_a_step_is_forward_backward_limit_and_update(tmp_path: Path) -> None:
    """Against the same by hand."""
    hand = make_learner(noise=False)
    run = make_run(tmp_path, clip_norm=0.1, learner=make_learner(noise=False))
    optimizer = torch.optim.AdamW(hand.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0)
    for group in run.state.optimizer.param_groups:
        group["weight_decay"] = 0
    for step in range(3):
        batch = make_batch(step, 8)
        report = run.step(run.state, batch)
        run.state.advance(batch)
        output, _ = hand(batch, step, 10)
        output.total.backward()
        parts = {"a": hand.encoders["a"], "b": hand.encoders["b"], "objective": hand.objective}
        norms = {
            name: torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item() for name, part in parts.items()
        }
        torch.nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            hand.objective.log_scale.clamp_(0, 1)
        scalars = report.scalars()
        assert scalars["loss"] == pytest.approx(output.total.item(), rel=1e-6)
        assert scalars["loss/near"] + scalars["loss/small"] == pytest.approx(scalars["loss"], rel=1e-6)
        assert {name: scalars[f"grad_norm/{name}"] for name in norms} == pytest.approx(norms, rel=1e-5)
        assert scalars["grad_norm"] == pytest.approx(math.hypot(*norms.values()), rel=1e-5)
    for ours, theirs in zip(run.state.learner.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert run.state.learner.objective.updates == 3


@pytest.mark.parametrize(("clip_norm", "share"), [(None, 1.0), (1e6, 1.0), (0.01, None)])
def test_gradients_are_scaled_down_and_never_up(tmp_path: Path, clip_norm: float | None, share: float | None) -> None:
    """What reaches the optimizer: Adam itself would hide a common factor."""
    run = make_run(tmp_path, clip_norm=clip_norm, learner=make_learner(noise=False))
    reached: list[Tensor] = []

    def note(*_: Any) -> None:
        reached.append(torch.cat([p.grad.flatten() for p in run.state.learner.parameters()]).norm())

    run.state.optimizer.register_step_pre_hook(note)
    total = run.step(run.state, make_batch(0, 8)).norms["grad_norm"]
    assert 0.01 < total < 1e6
    wanted = float(total) * share if share is not None else clip_norm
    assert [float(norm) for norm in reached] == [pytest.approx(wanted, rel=1e-3)]


def test_a_single_term_is_the_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path, learner=make_learner(Match))
    scalars = run.step(run.state, make_batch(0, 8)).scalars()
    monitors = ["spread/first", "norm/first"]
    assert list(scalars) == [
        "loss",
        "chance",
        *monitors,
        "grad_norm",
        "grad_norm/a",
        "grad_norm/b",
        "grad_norm/objective",
    ]
    assert scalars["chance"] == pytest.approx(math.log(8))


class Measured(Agree):
    """Counts how often its metrics are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        out = super().criterion(latents, ctx)

        def measure() -> dict[str, Tensor]:
            self.made += 1
            return {**out.metrics, "mean": latents["a"].detach().mean()}

        return LossOutput(out.terms, measure)


@pytest.mark.parametrize(("step", "times"), [({"kind": "plain"}, 1), (ACCUMULATED, 3)])
def test_metrics_are_made_for_steps_that_are_logged(tmp_path: Path, step: dict[str, Any], times: int) -> None:
    every, some = (
        make_run(
            tmp_path / str(n),
            9,
            learner=make_learner(Measured, noise=False),
            step=step,
            log={"every": f"{n} steps", "trackers": []},
        )
        for n in (1, 3)
    )
    records = []
    for run, logged in ((every, 9), (some, 3)):
        run.train()
        assert run.state.learner.objective.made == logged * times
        records.append(
            [
                {key: x for key, x in record.items() if key not in ("samples_per_second", "data_wait")}
                for record in run.log.metrics.read()
            ]
        )
    assert records[1] == records[0][2::3]
    assert "mean" in records[1][0]


@pytest.mark.parametrize("step", [{"kind": "plain"}, ACCUMULATED, {"kind": "cached", "micro_batches": 4}])
def test_monitors_are_those_of_the_whole_batch(tmp_path: Path, step: dict[str, Any]) -> None:
    """Not means over micro-batches; of what the encoders gave before the update."""
    run = make_run(tmp_path, learner=make_learner(noise=False), step=step)
    batch = make_batch(0, 8)
    learner = run.state.learner
    before = learner.objective.encode(batch, learner.context())["a"].detach()
    report = run.step(run.state, batch)
    scalars = report.scalars()
    assert scalars["spread/first"] == pytest.approx(float(spread(before)), rel=1e-5)
    assert scalars["norm/first"] == pytest.approx(float(before.norm(dim=1).mean()), rel=1e-5)


def test_votes_come_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run.step(run.state, make_batch(0, 8), [True, False, True]).votes == (True, False, True)
    assert run.step(run.state, make_batch(0, 8)).votes == ()


def test_micro_batches_of_a_local_loss_add_up_to_the_batch(tmp_path: Path) -> None:
    """8 samples in parts of 3, 3 and 2: the parts weigh what they hold."""
    plain = make_run(tmp_path / "1", learner=make_learner(noise=False))
    parts = make_run(tmp_path / "2", learner=make_learner(noise=False), step=ACCUMULATED)
    for step in range(4):
        reports = [run.step(run.state, make_batch(step, 8)).scalars() for run in (plain, parts)]
        assert reports[0] == pytest.approx(reports[1], rel=1e-5)
    ours, theirs = tensors(plain), tensors(parts)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(("reduction", "word"), [(Reduction.GATHER, "negatives"), (Reduction.STATISTIC, "statistics")])
def test_micro_batches_are_refused_where_samples_are_coupled(
    tmp_path: Path, reduction: Reduction, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Match, "reduction", reduction)
    with pytest.raises(RecipeError, match=rf"(?s)is wrong for Match: its .*{word} would come from one micro-batch"):
        make_run(tmp_path, learner=make_learner(Match, noise=False), step=ACCUMULATED)


def test_micro_batches_are_refused_where_layers_couple_samples(tmp_path: Path) -> None:
    """Before the objective's own coupling, whose remedy does not help here; frozen layers do not."""
    for objective in (Agree, Match):
        with pytest.raises(
            RecipeError,
            match=r"over 3 micro-batches cannot be used with BatchNorm1d 'encoders\.a\.norm' and 1 more like it: in training",
        ):
            make_run(tmp_path, learner=make_learner(objective), step=ACCUMULATED)
    learner = make_learner()
    for tower in learner.encoders.values():
        tower.requires_grad_(False)
    learner.train()
    run = make_run(tmp_path, learner=learner, step=ACCUMULATED)
    assert run.step(run.state, make_batch(0, 8)).finite


class Recording(Agree):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        self.seen["criterion"] = {latent.dtype for latent in latents.values()}
        return super().criterion(latents, ctx)

    def before_update(self, ctx: StepContext) -> None:
        self.seen["gradient"] = self.head.weight.grad.clone()

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        self.seen["after"] = {(latent.dtype, latent.requires_grad) for latent in latents.values()}
        self.seen["step"] = (ctx.step, ctx.total_steps)
        super().after_update(latents, ctx)


@pytest.mark.parametrize("step", [{"kind": "plain"}, ACCUMULATED])
def test_objectives_see_float32_under_autocast(tmp_path: Path, step: dict[str, Any]) -> None:
    run = make_run(tmp_path, learner=make_learner(Recording, noise=False), precision="bf16", step=step)
    heads: list[torch.dtype] = []
    run.state.learner.objective.head.register_forward_hook(lambda module, inputs, output: heads.append(output.dtype))
    run.state.step = 2
    assert run.step(run.state, make_batch(2, 8)).finite
    seen = run.state.learner.objective.seen
    assert set(heads) == {torch.bfloat16}
    assert seen["criterion"] == {torch.float32}
    assert seen["after"] == {(torch.float32, False)}
    assert seen["step"] == (2, 10)


def test_scaled_losses_give_unscaled_gradients_and_overflow_lowers_the_scale(tmp_path: Path) -> None:
    """fp16's scaler, driven on the CPU."""
    plain = make_run(tmp_path / "1", learner=make_learner(Recording))
    scaled = make_run(tmp_path / "2", learner=make_learner(Recording))
    scaler = scaled.launch.scaler = scaled.state.scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for run in (plain, scaled):
        run.step(run.state, make_batch(0, 8))
    gradients = [run.state.learner.objective.seen["gradient"] for run in (plain, scaled)]
    torch.testing.assert_close(*gradients)
    assert_close_runs(plain, scaled)
    before = tensors(scaled)
    assert not scaled.step(scaled.state, make_batch(1, 8, poisoned=True)).finite
    assert_equal(tensors(scaled), before)
    assert scaler.get_scale() == 512
    assert scaled.step(scaled.state, make_batch(2, 8)).finite
    assert scaled.step(scaled.state, make_batch(3, 8)).finite
    assert scaler.get_scale() == 1024
    numbers = scaled.state.numbers()
    again = make_run(tmp_path / "3")
    again.state.scaler = GradScaler("cpu", init_scale=2.0)
    again.state.load_numbers(numbers)
    assert again.state.scaler.get_scale() == 1024


def assert_close_runs(one: Any, other: Any) -> None:
    ours, theirs = tensors(one), tensors(other)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_random_numbers_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    """Dropout and its kin: another seed and every other step draws others, whatever was drawn before."""

    def drawn(name: str, seed: int) -> list[tuple[float, ...]]:
        run = make_run(tmp_path / name, learner=make_learner(Drawing, noise=False))
        run.step.seed = seed
        for step in range(3):
            torch.rand(step + seed)
            batch = make_batch(step, 8)
            run.step(run.state, batch)
            run.state.advance(batch)
        return run.state.learner.objective.drawn

    one, other = drawn("1", 1), drawn("2", 2)
    assert len(set(one + other)) == 6
    assert drawn("3", 1) == one
