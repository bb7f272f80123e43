"""Pretext tasks: golden tables, views undone by their labels, learning of a rotation, refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.parts.pretext_task import PretextTask
from mmssl.objectives.parts.pretext_tasks import TaskConfig
from mmssl.objectives.parts.tile_tasks import NEIGHBOURS, distant_permutations
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
    (turned,) = task(kind="rotation").make(x, torch.arange(4), torch.arange(4), 0)
    for quarter in range(4):
        assert np.array_equal(turned[quarter].numpy(), np.rot90(x[quarter].numpy(), quarter, (-2, -1)))


def numbered(side: int) -> torch.Tensor:
    """Four pictures whose cells have their numbers as values."""
    cells = torch.arange(float(side**2)).view(1, 1, side, side)
    return cells.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(4, 3, -1, -1)


def test_tiles_of_a_puzzle_are_put_back_by_its_permutation() -> None:
    label = torch.tensor([0, 3, 2, 1])
    parts = task(kind="jigsaw", permutations=4, tile=6, side=2).make(numbered(2), label, torch.arange(4), 0)
    assert [tuple(part.shape) for part in parts] == [(4, 3, 6, 6)] * 4
    assert torch.stack([part[:, 0, 0, 0] for part in parts], 1).long().equal(distant_permutations(4, 4)[label])
    middle, other = task(kind="context", tile=6).make(numbered(3), label, torch.arange(4), 0)
    assert middle.unique().tolist() == [4]
    assert other[:, 0, 0, 0].tolist() == [NEIGHBOURS[number] for number in label]


def test_places_of_tiles_are_drawn_for_each_sample_and_step_whoever_stands_beside() -> None:
    """Equally likely, from the first to the last that a cell has room for."""
    count, puzzle = 400, task(kind="context", tile=5)
    place = torch.arange(24.0 * 24).view(1, 1, 24, 24).expand(count, 3, -1, -1)  # values tell places
    label, index = torch.full((count,), 7), torch.arange(count)
    middle, other = puzzle.make(place, label, index, 3)
    for tiles, corner in ((middle, 8), (other, 16)):
        first = tiles[:, 0, 0, 0].long()
        for found in (first // 24 - corner, first % 24 - corner):
            shares = torch.bincount(found, minlength=4) / count
            assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.1)
        wanted = first[:, None, None] + 24 * torch.arange(5)[:, None] + torch.arange(5)
        assert torch.equal(tiles[:, 2].long(), wanted), "rows and columns of the picture"
    some = torch.tensor([7, 3])
    alone = puzzle.make(place[:2], label[:2], some, 3)
    assert all(torch.equal(one, whole[some]) for one, whole in zip(alone, (middle, other), strict=True))
    assert not torch.equal(puzzle.make(place, label, index, 4)[0], middle)


@pytest.mark.parametrize("kind", ["jigsaw", "context"])
def test_standardised_tiles_have_the_mean_and_deviation_of_their_picture(kind: str) -> None:
    x = torch.randint(0, 256, (3, 3, 24, 24), generator=random(), dtype=torch.uint8)
    x[0, :, :12] //= 4  # dark above
    x[1] = 7  # flat: there is no deviation to give
    puzzle = task(kind=kind, tile=6, standardise=True, **({"permutations": 5} if kind == "jigsaw" else {}))
    whole = x.float() / 255
    for tile in puzzle.make(x, torch.tensor([1, 2, 3]), torch.arange(3), 0):
        torch.testing.assert_close(tile.mean((-2, -1)), whole.mean((-2, -1)))
        wanted = whole.std((-2, -1), correction=0)
        torch.testing.assert_close(tile.std((-2, -1), correction=0), wanted, atol=1e-6, rtol=1e-4)


def test_one_channel_of_a_tile_stays_and_the_others_are_faint_noise() -> None:
    x = torch.rand(200, 3, 24, 24, generator=random()) + torch.tensor([0.0, 1, 2])[:, None, None]
    label, index = torch.full((200,), 2), torch.arange(200)
    plain = task(kind="context", tile=8).make(x, label, index, 5)
    kept = []
    for whole, tile in zip(plain, task(kind="context", tile=8, channels="one").make(x, label, index, 5), strict=True):
        stays = (tile == whole).all(-1).all(-1)
        assert stays.sum(1).tolist() == [1] * 200
        kept.append(stays.byte().argmax(1))
        noise = tile[~stays] - x.mean((-2, -1))[~stays][:, None, None]
        wanted = 0.01 * whole[stays].std((-2, -1), correction=0).repeat_interleave(2)
        assert (noise.std((-2, -1)) / wanted).mean().item() == pytest.approx(1, abs=0.02)
        assert abs(noise.mean().item()) < 1e-3
    for which in kept:
        assert (torch.bincount(which) / 200).tolist() == pytest.approx([1 / 3] * 3, abs=0.12)
    assert not torch.equal(*kept), "tiles draw apart"


def test_context_is_read_in_both_orders_and_seen_from_the_other_side() -> None:
    learner, objective = build(**CONTEXT)
    batch = toys.batch(6, seed=3)
    label = batch["picture"]["choice0"] % 8
    batch["picture"]["choice0"] = label  # type: ignore[index]
    ctx = learner.context(2, 9)
    latents = objective.encode(batch, ctx)
    places = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    assert latents["target"].tolist() == [[k, places.index((-places[k][0], -places[k][1]))] for k in label.tolist()]
    seed = ctx.generator("pretext").initial_seed()
    tiles = objective.task.make(batch["picture"]["wide0"], label, batch.index, seed)
    middle, other = (learner.encoders["picture"](tile).pooled for tile in tiles)
    scores = [objective.head(torch.cat(pair, 1)) for pair in ((middle, other), (other, middle))]
    torch.testing.assert_close(latents["prediction"], torch.stack(scores, 1))
    costs = [torch.nn.functional.cross_entropy(s, t) for s, t in zip(scores, latents["target"].T, strict=True)]
    torch.testing.assert_close(objective.criterion(latents, ctx).terms["pretext"], torch.stack(costs).mean())


def test_a_part_of_a_clip_may_have_one_channel_in_place_of_all() -> None:
    x = torch.rand(60, 8, 3, 4, 4, generator=random())
    label, index = torch.arange(60) % 12, torch.arange(60)
    plain = task(kind="order", axis=0).make(x, label, index, 1)
    drawn = []
    for whole, part in zip(plain, task(kind="order", axis=0, channels="one").make(x, label, index, 1), strict=True):
        assert part.shape == whole.shape
        same = (part[:, :, :1] == whole).all(1).flatten(2).all(-1)  # [60, 3]
        assert same.sum(1).tolist() == [1] * 60
        assert torch.equal(part, part[:, :, :1].expand_as(part))
        drawn.append(same.byte().argmax(1))
    assert len({tuple(which.tolist()) for which in drawn}) == 4
    assert torch.stack(drawn).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("axis", [0, 1])
def test_time_is_sorted_turned_and_hastened(axis: int) -> None:
    x = torch.arange(8).view(1, 8, 1).expand(12, 8, 3)
    x = x if axis == 0 else x.movedim(1, 2)

    def times(made: torch.Tensor) -> list[list[int]]:
        return made.movedim(axis + 1, 1)[..., 0].tolist()

    parts = task(kind="order", axis=axis).make(x, torch.arange(12), torch.arange(12), 0)
    assert len(parts) == 4
    sorted_ = [[t for piece in pieces for t in piece] for pieces in zip(*map(times, parts), strict=True)]
    assert sorted_ == [[t for piece in order for t in (2 * piece, 2 * piece + 1)] for order in ORDERS]
    (turned,) = task(kind="arrow", axis=axis).make(x[:2], torch.arange(2), torch.arange(2), 0)
    assert times(turned) == [[*range(8)], [*range(8)][::-1]]
    (fast,) = task(kind="speed", axis=axis, speeds=[1, 2, 4]).make(x[:3], torch.arange(3), torch.arange(3), 0)
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
        ({"task": {"kind": "order", "axis": 1, "pieces": 4, "channels": "one"}}, r"for channels: one, wanted clips"),
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
