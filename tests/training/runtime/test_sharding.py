"""Weights, gradients and moments split over two processes: the run of one process, and checkpoints that go everywhere."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from mmssl.core import distributed
from mmssl.core.config import Duration
from mmssl.core.context import StepContext
from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Latents, Learner, LossOutput
from mmssl.core.teacher import Momentum, Teacher
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.training.checkpoints.read import load_weights, read_optimizer, resolve
from mmssl.training.run import Run
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.sharding import encoder_blocks, full_moments, full_state
from tests.distributed.processes import Processes
from tests.training.toys import WIDTH, Distance, Match, assert_equal, make_run

CACHED = {"kind": "cached", "micro_batches": 3}
# Adam divides by the root of what may be next to nothing; with this epsilon rounding stays rounding.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw", "lr": 0.01, "eps": 1e-3},
    "sgd": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.01},
    "lars": {"kind": "lars", "lr": 0.1, "trust": 0.1, "weight_decay": 0.01},
}
CHANGES: dict[str, Any] = {"optimizer": OPTIMIZERS["adamw"], "schedule": {"kind": "constant"}}


class Deep(Encoder):
    """Blocks in a list, weights that two processes cannot share evenly, a scalar, and a layer that is not trained."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)) for _ in range(2))
        self.blocks = nn.ModuleList(Residual(block) for block in self.blocks)
        self.last = nn.Linear(5, WIDTH, bias=False)
        self.blocks[0].inner[0].bias.requires_grad_(False)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        x = self.first(self.prepare(x)) * self.scale
        for block in self.blocks:
            x = block(x)
        return Features(self.last(x)[:, :])

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.parameters()]]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def momentum(step: int) -> float:
    return 0.9 + 0.01 * step


class Taught(Match):
    """Adds a teacher of one encoder and one of the head; encodes each input twice before it goes backward."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher_head = Teacher(self.head, momentum)

    def teachers(self) -> dict[str, Momentum]:
        return {"a": momentum}

    def encode(self, batch: Any, ctx: StepContext) -> Latents:
        latents = super().encode(batch, ctx)
        (taught,) = ctx.features(batch, "a", ["view0"], network="teacher", pooled_only=True)
        latents["taught"] = self.teacher_head(taught.pooled)
        latents["again"] = ctx.encoders["a"](0.5 * batch["a"]["view0"]).pooled
        return latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        output = super().criterion(latents, ctx)
        near = self.log_scale * (latents["again"] - latents["taught"]).square().mean()
        return LossOutput({**output.terms, "taught": near}, output.measure)


def deep_run(folder: str, total: int, parallel: str, step: str = "plain", **changes: Any) -> Run:
    torch.manual_seed(distributed.rank())  # all processes start from the main one's weights
    encoders = {"a": Deep(), "b": Deep()}
    learner = Learner(encoders, Taught())
    changes = {**CHANGES, **({"step": CACHED} if step == "cached" else {}), **changes}
    if distributed.world_size() > 1:
        changes["parallel"] = parallel
    return make_run(
        Path(folder), total, learner=learner, evaluators={"far": (Distance(), Duration("3 steps"))}, **changes
    )


def tensors(run: Run) -> dict[str, Tensor]:
    """Every tensor of a run's state, whole on the main process."""
    assert run.state.ema is not None
    found = {f"learner.{n}": t for n, t in full_state(run.state.learner).items()}
    found |= {f"ema.{n}": t for n, t in full_state(run.state.ema.module).items()}
    for index, moments in full_moments(run.state.optimizer)["state"].items():
        found |= {f"optimizer.{index}.{n}": t for n, t in moments.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def trained(
    folder: str, total: int, parallel: str = "ddp", step: str = "plain", optimizer: str = "adamw"
) -> dict[str, Any]:
    run = deep_run(folder, total, parallel, step, optimizer=OPTIMIZERS[optimizer])
    run.train()
    learner = run.state.learner
    split = [name for name, p in learner.named_parameters() if isinstance(p, DTensor)]
    return {
        "tensors": tensors(run),
        "split": split,
        "skipped": run.state.skipped_steps,
        "far": run.state.scores["far/distance"],
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`trained` on one process: steps, and more; each way once."""

    @functools.cache
    def run(total: int, **more: str) -> dict[str, Any]:
        return trained(str(tmp_path_factory.mktemp("alone")), total, **more)

    return run


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("parallel", "step"),
    [
        ("fsdp2", "plain"),
        ("zero2", "cached"),
        pytest.param("fsdp2", "cached", marks=SLOW),  # tests/contracts/test_sharding.py has its gradients
        pytest.param("zero2", "plain", marks=SLOW),
    ],
)
def test_two_processes_train_as_one(
    two_processes: Processes, tmp_path: Path, parallel: str, step: str, alone: Callable[..., dict[str, Any]]
) -> None:
    one = alone(6, step=step)
    first, second = two_processes.run(trained, [(str(tmp_path / "two"), 6, parallel, step)] * 2)
    assert one["split"] == []
    assert len(first["split"]) == 2 * 11 + 11
    assert "objective.log_scale" not in first["split"]
    assert first["skipped"] == 0
    assert_close(first["tensors"], one["tensors"])
    assert first["far"] == second["far"] == pytest.approx(one["far"], rel=1e-5)
    start = alone(1)["tensors"]
    moved = [name for name, x in one["tensors"].items() if name.startswith("learner") and not x.equal(start[name])]
    assert {"learner.objective.log_scale", "learner.teachers.a.network.last.weight"} <= {*moved}


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_two_processes_train_as_one_with_every_optimizer(
    two_processes: Processes, tmp_path: Path, optimizer: str, alone: Callable[..., dict[str, Any]]
) -> None:
    one = alone(4, optimizer=optimizer)
    first, _ = two_processes.run(trained, [(str(tmp_path / "two"), 4, "fsdp2", "plain", optimizer)] * 2)
    assert first["split"]
    assert_close(first["tensors"], one["tensors"])


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_moments_of_every_optimizer_go_from_many_processes_to_one(
    two_processes: Processes, tmp_path: Path, optimizer: str, alone: Callable[..., dict[str, Any]]
) -> None:
    two_processes.run(trained, [(str(tmp_path / "moved"), 3, "fsdp2", "plain", optimizer)] * 2)
    through = alone(5, optimizer=optimizer)
    assert_close(trained(str(tmp_path / "moved"), 5, optimizer=optimizer)["tensors"], through["tensors"])
    again = two_processes.run(trained, [(str(tmp_path / "moved"), 5, "fsdp2", "plain", optimizer)] * 2)[0]
    assert_close(again["tensors"], through["tensors"])


WAYS = [("one", "fsdp2"), ("fsdp2", "one"), ("ddp", "fsdp2"), ("zero2", "ddp")]
WAYS += [pytest.param("one", "ddp", marks=SLOW), pytest.param("ddp", "one", marks=SLOW)]  # each end is in a way above


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_checkpoints_go_from_any_to_any(
    two_processes: Processes, tmp_path: Path, before: str, after: str, alone: Callable[..., dict[str, Any]]
) -> None:
    def train(folder: Path, total: int, how: str) -> dict[str, Any]:
        if how == "one":
            return trained(str(folder), total)
        return two_processes.run(trained, [(str(folder), total, how)] * 2)[0]  # type: ignore[no-any-return]

    through = alone(5)
    made = train(tmp_path / "moved", 3, before)
    saved = resolve(tmp_path / "moved", "last")
    for prefix, ema in (("learner.", False), ("ema.", True)):
        ours = {name.removeprefix(prefix): x for name, x in made["tensors"].items() if name.startswith(prefix)}
        assert_equal(load_weights(saved, use_ema=ema), ours)
    assert not any(isinstance(x, DTensor) for entry in read_optimizer(saved)["state"].values() for x in entry.values())
    again = train(tmp_path / "moved", 3, after)  # has its steps already: loads and does nothing
    assert_equal(again["tensors"], made["tensors"])
    assert_close(train(tmp_path / "moved", 5, after)["tensors"], through["tensors"])


def clipped(folder: str) -> dict[str, Any]:
    """Norms of a step, and what is left of the gradients after clipping."""
    run = deep_run(folder, 6, "fsdp2", clip_norm=0.01)
    left: list[Tensor] = []
    original = run.state.optimizer.step

    def step(*args: Any) -> Any:
        gradients = [p.grad for p in run.state.learner.parameters() if p.grad is not None]
        squares = [float((g.full_tensor() if isinstance(g, DTensor) else g).square().sum()) for g in gradients]
        left.append(torch.tensor(sum(squares)).sqrt())
        return original(*args)

    run.state.optimizer.step = step  # type: ignore[method-assign]
    run.state.learner.train()
    report = run.step(run.state, next(iter(run.state.stream)))
    return {"norms": dict(report.norms), "left": left[0], "types": [type(n).__name__ for n in report.norms.values()]}


def test_norms_and_clipping_see_the_whole_gradient(two_processes: Processes, tmp_path: Path) -> None:
    one = clipped(str(tmp_path / "one"))
    first, second = two_processes.run(clipped, [(str(tmp_path / "two"),)] * 2)
    for name, expected in one["norms"].items():
        torch.testing.assert_close(first["norms"][name], expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(first["norms"][name], second["norms"][name])
    assert set(first["types"]) == {"Tensor"}
    assert float(first["left"]) == pytest.approx(0.01, rel=1e-3)
    assert float(one["norms"]["grad_norm"]) > 0.02


def poisoned(folder: str) -> dict[str, Any]:
    run = deep_run(folder, 6, "fsdp2")
    before = tensors(run)
    batch = next(iter(run.state.stream))
    if distributed.rank() == 1:
        batch["b"]["view0"][0] = torch.nan
    run.state.learner.train()
    finite = run.step(run.state, batch).finite
    after = tensors(run)
    return {"finite": finite, "moved": [name for name in before if not torch.equal(before[name], after[name])]}


def test_a_gradient_that_is_not_finite_moves_nothing(two_processes: Processes, tmp_path: Path) -> None:
    assert two_processes.run(poisoned, [(str(tmp_path),)] * 2) == [{"finite": False, "moved": []}] * 2


def unevenly_called() -> list[bool]:
    """The main process calls an encoder three times, the other never."""
    torch.manual_seed(0)
    encoders = {"a": Deep(), "b": Deep()}
    learner, launch = Learner(encoders, Match()), Launch(device="cpu", parallel="fsdp2")
    reference = copy.deepcopy(learner)
    launch.place(learner)
    launch.wrap(learner)
    x = torch.ones(2, WIDTH)
    answers = []
    with torch.no_grad(), launch.gathered(learner):
        for _ in range(3 if distributed.is_main() else 0):
            model = EmbeddingModel(dict(learner.encoders.items()), learner.objective.heads())
            answers.append(
                torch.equal(
                    model.embed("a", x),
                    EmbeddingModel(reference.encoders, {"a": reference.objective.head}).embed("a", x),
                )
            )
    split = all(isinstance(p, DTensor) for p in learner.encoders["a"].parameters() if p.ndim)
    return [*answers, split]


def test_evaluation_may_be_uneven(two_processes: Processes) -> None:
    assert two_processes.run(unevenly_called) == [[True] * 4, [True]]


def in_half_precision(folder: str) -> list[str]:
    said = []
    for precision in ("fp16", "bf16"):
        try:
            run = deep_run(folder, 2, "fsdp2", "cached", precision=precision)
            run.train()
            said.append(f"{run.state.skipped_steps} skipped")
        except RecipeError as error:
            said.append(str(error))
    return said


def test_half_precision(two_processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_processes.run(in_half_precision, [(str(tmp_path),)] * 2)
    assert first == second
    assert "fp16 is for CUDA devices" in first[0]
    assert first[1] == "0 skipped"


def test_outputs_of_encoders_can_be_opened() -> None:
    """torch 2.11 gathers weights for the backward pass where the tensors that pytree finds in an output get their gradient."""
    pooled = torch.ones(2)
    hidden = (torch.ones(2, 1, 3), torch.ones(2, 1, 3))
    leaves = tree_leaves(Features(pooled, hidden=hidden))
    assert all(any(leaf is x for leaf in leaves) for x in (pooled, *hidden))


def test_blocks_are_found() -> None:
    vision = VisionTransformerConfig(size=32, patch_size=16, width=32, depth=3, heads=2).build()
    assert encoder_blocks(vision) == [*vision.blocks]
    text = TextTransformerConfig(vocab_size=10, context_length=8, width=32, depth=2, heads=2).build()
    assert encoder_blocks(text) == [*text.blocks]
    residual = ResNetConfig(size=64, layers=(1, 2), channels=8, pool="mean").build()
    assert [type(block).__name__ for block in encoder_blocks(residual)] == ["Bottleneck"] * 3


@pytest.mark.parametrize(
    ("environment", "recipe", "expected"),
    [
        ({}, "auto", "ddp"),
        ({}, "fsdp2", "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "auto", "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, "auto", "zero2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "auto", "zero2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ddp", "recipe asks for 'ddp' and the launcher for 'fsdp2'"),
        ({"ACCELERATE_USE_FSDP": "true"}, "auto", "FSDP version 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "auto", "with offload"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "auto", "ZeRO stage 3"),
    ],
)  # fmt: skip
def test_the_launcher_or_the_recipe_says_how(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], recipe: Any, expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mmssl.training.runtime.launch.Accelerator.num_processes", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if expected in ("ddp", "zero2", "fsdp2"):
        launch = Launch(device="cpu", parallel=recipe)
        assert launch.parallel == expected
        assert launch.describe().startswith(f"2 processes, parallel {expected} (")
    else:
        with pytest.raises(RecipeError, match=re.escape(expected)):
            Launch(device="cpu", parallel=recipe)
