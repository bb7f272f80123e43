"""A learner, a stream and runs that are as small as can be, and hold all that can go wrong on resume: dropout, batch normalisation,
a buffer that moves, a temperature, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.config import Duration
from mmssl.core.context import StepContext
from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.objective import Headline, Latents, Learner, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.sample import Drawn, Fault, Origin
from mmssl.core.seeding import generator
from mmssl.training.refresh import Reading
from mmssl.training.run import Run, TrainingConfig

WIDTH = 6


class Tower(Encoder):
    """[B, 6] -> pooled [B, 6] through two linear layers; with `noise`, batch normalisation and dropout between them."""

    width = WIDTH

    def __init__(self, noise: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if noise else nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.3 if noise else 0.0)
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)

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
        return Features(self.last(self.dropout(self.norm(self.first(self.prepare(x))).relu())))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.first.parameters()], [*self.norm.parameters()], [*self.last.parameters()]]


class Agree(Objective):
    """Both towers' heads should agree on each sample alone: a mean over samples.

    Writes NaN into one gradient at the step `break_gradient`.
    """

    reduction = Reduction.LOCAL

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("centre", torch.zeros(WIDTH))
        self.register_buffer("updates", torch.tensor(0))
        self.break_gradient = -1

    def needs(self) -> Mapping[str, Mapping[str, int]]:
        return {"a": {"view": 1}, "b": {"view": 1}}

    def heads(self) -> Mapping[str, nn.Module]:
        return {"a": self.head, "b": self.head}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        return {m: self.head(ctx.encoders[m](batch[m]["view0"]).pooled) for m in ("a", "b")}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        a, b = latents["a"], latents["b"]
        near = self.log_scale.exp() * (a - b - 1).square().mean()
        scale = self.log_scale.exp().detach()
        return LossOutput({"near": near, "small": 0.1 * (a.square().mean())}, lambda: {"scale": scale})

    def monitored(self) -> Mapping[str, str]:
        return {"first": "a"}

    def before_update(self, ctx: StepContext) -> None:
        if ctx.step == self.break_gradient:
            assert self.head.weight.grad is not None
            self.head.weight.grad[0, 0] = math.nan

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        self.log_scale.clamp_(0, 1)
        everyone = distributed.total_detached(latents["a"].mean(0)) / distributed.world_size()
        self.centre.lerp_(everyone, 0.1)
        self.updates += 1


class Match(Agree):
    """Each sample of one modality should find its partner among those of all processes: it couples samples."""

    reduction = Reduction.GATHER

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        a, b = (F.normalize(latents[m], dim=-1) for m in ("a", "b"))
        logits = self.log_scale.exp() * 5 * a @ distributed.gather(b).T
        labels = torch.arange(len(a), device=a.device) + distributed.rank() * len(a)
        chance = torch.tensor(math.log(logits.shape[1]))
        return LossOutput({"match": F.cross_entropy(logits, labels)}, lambda: {"chance": chance})

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        return Headline(scalars["chance"], {"gradient": scalars["grad_norm"]})


class Drawing(Agree):
    """Notes what an encoder would draw in each call, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, ...]] = []

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        self.drawn.append(tuple(torch.rand(2).tolist()))
        return super().encode(batch, ctx)


def make_learner(objective: type[Agree] = Agree, noise: bool = True, seed: int = 0) -> Learner:
    """Equal for equal seeds."""
    torch.manual_seed(seed)
    return Learner({"a": Tower(noise), "b": Tower(noise)}, objective())


class Stream:
    """Batches that are a function of the step; `poison` names steps whose data hold NaN, `act` is called before each batch."""

    def __init__(self, batch_size: int = 8, poison: tuple[int, ...] = ()) -> None:
        self.batch_size, self.poison = batch_size, poison
        self.step = 0
        self.closed = False

    def act(self, step: int) -> None:
        """What a test wants to happen just before the batch of a step."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.act(self.step)
            batch = make_batch(self.step, self.batch_size, self.step in self.poison)
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def drawn(self) -> dict[str, Drawn]:
        return {}

    def close(self) -> None:
        self.closed = True


def make_batch(step: int, size: int, poisoned: bool = False) -> Batch:
    """This process' rows of the global batch of a step."""
    random = generator("toy", step)
    views = {m: {"view0": torch.from_numpy(random.standard_normal((size, WIDTH))).float()} for m in ("a", "b")}
    if poisoned:
        views["a"]["view0"][size - 1] = math.nan
    fault = Fault(f"bad-{step}", Origin("toy", "shard", step, 0), "a", "undecodable", "cut short", "another")
    whole = Batch(
        views,
        torch.arange(size) + step * size,
        tuple(f"{step}-{i}" for i in range(size)),
        faults=(fault,) if step % 4 == 1 and distributed.is_main() else (),
        notes=(("turn: no_handle",), *[()] * (size - 1)),
    )
    share = size // distributed.world_size()
    rows = whole.rows(distributed.rank() * share, (distributed.rank() + 1) * share)
    return rows


class Distance(Evaluator):
    """How far the towers are apart on fixed inputs; and a score that is not defined."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        self.seen.append(model.training)
        x = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)
        with torch.no_grad():
            yield "distance", float((model.embed("a", x) - model.embed("b", x)).norm())
        yield "nothing", None


BASE = {
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "schedule": {"kind": "cosine", "warmup": "3 steps"},
    "ema": {"decay": 0.9, "warmup": True},
    "device": "cpu",
    "clip_norm": 1.0,
    "save": {"every": "4 steps", "minutes": None},
    "log": {"every": "1 steps", "trackers": []},
}


def make_config(**changes: Any) -> TrainingConfig:
    """BASE, with entries replaced."""
    return TrainingConfig.model_validate_json(json.dumps({**BASE, **changes}))


def make_run(
    folder: Path,
    total: int = 10,
    stream: Stream | None = None,
    learner: Learner | None = None,
    evaluators: Mapping[str, tuple[Evaluator, Duration | None]] | None = None,
    reading: Reading | None = None,
    **changes: Any,
) -> Run:
    """A fresh run; `changes` replace entries of BASE, whose warm-up is cut to the run."""
    warmup = f"{min(3, total)} steps"
    config = make_config(**{"schedule": {"kind": "cosine", "warmup": warmup}, **changes})
    return config.build(
        learner or make_learner(),
        stream or Stream(),
        evaluators or {},
        config.launch(),
        folder,
        "recipe: toy\n",
        seed=1,
        plan=Plan(total, batch_size=8, samples=80),
        reading=reading,
    )


def tensors(run: Run) -> dict[str, Tensor]:
    """Every tensor of a run's state."""
    state = run.state
    found = {f"learner.{n}": t for n, t in state.learner.state_dict().items()}
    if state.ema is not None:
        found |= {f"ema.{n}": t for n, t in state.ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{n}": t for n, t in moments.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Bit by bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"not bit-equal: {different}"
