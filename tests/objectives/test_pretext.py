"""Pretext tasks: golden tables, views undone by their labels, learning of a rotation, refusals."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.parts.noises import uniform_noise
from mmssl.objectives.parts.pretext_tasks import NEIGHBOURS, PretextTask, TaskConfig, Uniform, distant_permutations
from mmssl.objectives.pretext import PretextConfig, PretextObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

TASKS: TypeAdapter[PretextTask] = TypeAdapter(TaskConfig)
CONFIG: dict[str, Any] = {
    "kind": "pretext", "modality": "picture", "view": "crop", "task": {"kind": "rotation"}, "predictor": {"kind": "linear"},
}  # fmt: skip
CONTEXT = CONFIG | {"view": "wide", "task": {"kind": "context", "tile": 8}, "predictor": {"kind": "bert"}}
LN = {4: {"pretext": np.log(4)}, 8: {"pretext": np.log(8)}}
CASES = {
    "pretext": Case(json.dumps(CONFIG), Reduction.LOCAL, LN[4]),
    "pretext, two parts": Case(json.dumps(CONTEXT), Reduction.LOCAL, LN[8]),
    "pretext, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, LN[4], FIVE),
}
ORDERS = [
    (0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 3, 2, 1), (1, 0, 2, 3), (1, 0, 3, 2), (1, 2, 0, 3),
    (1, 3, 0, 2), (2, 0, 1, 3), (2, 1, 0, 3),
]  # fmt: skip
PERMUTATIONS = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0], [0, 2, 3, 1], [0, 3, 1, 2]]
"""Of ssl-golden-values-2.json: opn_orders_of_4_up_to_reversal, jigsaw_6_permutations_of_4."""


def task(**config: Any) -> PretextTask:
    return TASKS.validate_json(json.dumps(config))


def build(**changes: Any) -> tuple[Learner, PretextObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = PretextConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def uniform(samples: int, seed: int = 0) -> Uniform:
    return partial(uniform_noise, torch.arange(samples), seed)


def test_golden_tables() -> None:
    assert task(kind="order", axis=0).orders == ORDERS  # type: ignore[attr-defined]
    assert distant_permutations(4, 6).tolist() == PERMUTATIONS
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    assert [(cell // 3 - 1, cell % 3 - 1) for cell in NEIGHBOURS] == around
    nine = distant_permutations(9, 30)
    assert min(int((a != b).sum()) for i, a in enumerate(nine) for b in nine[:i]) >= 7


@pytest.mark.parametrize("shape", [(4, 3, 6, 6), (4, 2, 3, 6, 6)])
def test_rotations_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, shape, generator=random(), dtype=torch.uint8)
    (turned,) = task(kind="rotation").make(x, torch.arange(4), uniform(4))
    for quarter in range(4):
        assert np.array_equal(turned[quarter].numpy(), np.rot90(x[quarter].numpy(), quarter, (-2, -1)))


def numbered(side: int) -> torch.Tensor:
    """Four pictures whose cells have their numbers as values."""
    cells = torch.arange(float(side**2)).view(1, 1, side, side)
    return cells.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(4, 3, -1, -1)


def test_tiles_of_a_puzzle_are_put_back_by_its_permutation() -> None:
    label = torch.tensor([0, 3, 2, 1])
    parts = task(kind="jigsaw", permutations=4, tile=6, side=2).make(numbered(2), label, uniform(4))
    assert [tuple(part.shape) for part in parts] == [(4, 3, 6, 6)] * 4
    assert torch.stack([part[:, 0, 0, 0] for part in parts], 1).long().equal(distant_permutations(4, 4)[label])
    middle, other = task(kind="context", tile=6).make(numbered(3), label, uniform(4))
    assert middle.unique().tolist() == [4]
    assert other[:, 0, 0, 0].tolist() == [NEIGHBOURS[number] for number in label]


def test_places_of_tiles_are_drawn_for_each_sample_alike_in_its_cell() -> None:
    """All places are reached; a tile is a part of its picture."""
    x = torch.arange(24 * 24).view(1, 1, 24, 24).expand(200, 3, -1, -1)
    label = torch.zeros(200, dtype=torch.int64)
    middle, other = task(kind="context", tile=5).make(x, label, uniform(200))
    for tile, first in ((middle, 8), (other, 0)):
        y, z = tile[:, 0, 0, 0] // 24 - first, tile[:, 0, 0, 0] % 24 - first
        assert {*zip(y.tolist(), z.tolist(), strict=True)} == {*itertools.product(range(4), repeat=2)}
        inside = torch.arange(5)
        assert torch.equal(tile, tile[..., :1, :1] + 24 * inside[:, None] + inside)
    again = task(kind="context", tile=5).make(x, label, uniform(200, seed=1))
    assert not torch.equal(again[0], middle)


@pytest.mark.parametrize("axis", [0, 1])
def test_time_is_sorted_turned_and_hastened(axis: int) -> None:
    x = torch.arange(8).view(1, 8, 1).expand(12, 8, 3)
    x = x if axis == 0 else x.movedim(1, 2)

    def times(made: torch.Tensor) -> list[list[int]]:
        return made.movedim(axis + 1, 1)[..., 0].tolist()

    parts = task(kind="order", axis=axis).make(x, torch.arange(12), uniform(12))
    assert len(parts) == 4
    sorted_ = [[t for piece in pieces for t in piece] for pieces in zip(*map(times, parts), strict=True)]
    assert sorted_ == [[t for piece in order for t in (2 * piece, 2 * piece + 1)] for order in ORDERS]
    (turned,) = task(kind="arrow", axis=axis).make(x[:2], torch.arange(2), uniform(2))
    assert times(turned) == [[*range(8)], [*range(8)][::-1]]
    (fast,) = task(kind="speed", axis=axis, speeds=[1, 2, 4]).make(x[:3], torch.arange(3), uniform(3))
    assert times(fast) == [[0, 1], [0, 2], [0, 4]]


def test_a_rotation_is_learned() -> None:
    """Of pictures that are bright at the top; a network that sees the label in no other way."""
    learner, _ = build()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    shade = (255 - 30 * torch.arange(8)).view(1, 1, 8, 1).expand(32, 3, 8, 8)
    for step in range(40):
        given = torch.Generator().manual_seed(step)
        noise = torch.randint(-20, 20, shade.shape, generator=given)
        label = torch.randint(0, 4, (32,), generator=given)
        x = (shade + noise).clamp(0, 255).to(torch.uint8)
        out, _ = learner(Batch({"picture": {"crop0": x, "choice0": label}}, torch.arange(32)), step, 40)
        optimizer.zero_grad(), out.total.backward(), optimizer.step()
    assert out.metrics["accuracy"] > 0.9
    assert out.metrics["chance_loss"].item() == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"view": "wide", "task": {"kind": "jigsaw", "permutations": 8, "side": 2, "tile": 13}},
            "wanted .* with sides of 26",
        ),
        ({"task": {"kind": "arrow", "axis": 3}}, r"arrow: got views \[4, 3, 8, 8\] with time on axis 3"),
        ({"task": {"kind": "order", "axis": 0, "pieces": 2, "reversible": False}}, "wanted a multiple of 2 times"),
        ({"task": {"kind": "arrow", "axis": 0}}, r"got labels .* up to 3 .* wanted \[B\] below 2: .*choices: 2"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    learner, objective = build(**changes)
    batch = toys.batch(4, seed=3)
    assert int(batch["picture"]["choice0"].max()) == 3 or "labels" not in message
    if "labels" not in message:
        batch["picture"]["choice0"].zero_()  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        objective.check_views(batch, learner.context())


def test_settings_that_make_no_task_are_refused() -> None:
    for config in (
        {"kind": "order", "axis": 0, "pieces": 2},
        {"kind": "speed", "axis": 0, "speeds": [2, 1]},
        {"kind": "jigsaw", "permutations": 25, "side": 2, "tile": 8},
    ):
        with pytest.raises(ValidationError, match="wanted"):
            task(**config)
