"""Colorization: loss by hand, colours are hidden from the encoder, rare colours weigh more, learning, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.colours import colour_bins, rare_colour_weights, rgb_to_lab
from mmssl.objectives.colorization import ColorizationConfig, ColorizationObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "colorization", "modality": "picture", "view": "crop", "patch_size": 2, "cell": 1, "predictor": {"kind": "linear"},
}  # fmt: skip
ALIKE = {"colours": 8**-0.5}  # the contract makes a unit vector of the errors of 8 samples
CASES = {
    "colorization": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE),
    "colorization, equal weights": Case(json.dumps(CONFIG | {"uniform": 1.0, "cell": 2}), Reduction.LOCAL, ALIKE),
    "colorization, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE, FIVE),
}


def build(**changes: Any) -> tuple[Learner, ColorizationObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = ColorizationConfig.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, Plan.unknown())
    return Learner({"picture": encoder}, objective), objective


def batch(x: Tensor) -> Batch:
    return Batch({"picture": {"crop0": x}}, torch.arange(len(x)))


def flat(*colours: tuple[int, int, int]) -> Tensor:
    """Pictures [B, 3, 8, 8] of one colour each."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def test_loss_by_hand() -> None:
    learner, objective = build(cell=2, neighbours=1)
    objective.counts += torch.arange(261.0)
    given = toys.batch(4)
    out, latents = learner(given)
    x = given["picture"]["crop0"].float() / 255
    lab, bins = rgb_to_lab(x), colour_bins()
    scores = objective.head(
        learner.encoders["picture"]((lab[:, :1] / 100).expand(-1, 3, -1, -1)).tokens
    )  # [4, 16, 261]
    weights = rare_colour_weights(objective.counts / objective.counts.sum(), 0.5)
    costs = []
    for i in range(4):
        for t in range(16):
            row, column = 2 * (t // 4), 2 * (t % 4)
            ab = lab[i, 1:, row : row + 2, column : column + 2].mean((1, 2))
            nearest = (bins - ab).square().sum(1).argmin()
            costs.append(weights[nearest] * F.cross_entropy(scores[i, t], nearest))
    torch.testing.assert_close(out.total, torch.stack(costs).mean())
    torch.testing.assert_close(latents["colours"].sum(1), torch.ones(4))


def test_the_encoder_sees_lightness_alone() -> None:
    """Two colours of one lightness look the same, and their labels differ."""
    learner, _ = build()
    x = torch.tensor([[0.6, 0.4, 0.4], [0.4, 0.4 + 1e-2, 0.6]]).view(2, 3, 1, 1).expand(-1, -1, 8, 8).clone()
    red, blue = rgb_to_lab(x[:, :, 0, 0])
    seen: list[Tensor] = []
    learner.encoders["picture"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    _, latents = learner(batch(x))
    assert seen[0].shape == (2, 3, 8, 8)
    torch.testing.assert_close(seen[0][:, :, 0, 0], torch.stack([red[:1], blue[:1]]).expand(-1, 3) / 100)
    assert latents["colours"][0].argmax() != latents["colours"][1].argmax()


def test_colours_so_far_are_counted_and_rare_ones_weigh_more() -> None:
    learner, objective = build()
    given = batch(flat((200, 40, 40), (200, 40, 40), (200, 40, 40), (40, 40, 200)))
    _, latents = learner(given)
    red, blue = (int(latents["colours"][i].argmax()) for i in (0, 3))
    torch.testing.assert_close(latents["colours"], latents["weighted"])  # nothing was counted: all weigh the same
    learner.after_update({name: x.detach() for name, x in latents.items()}, learner.context())
    assert float(objective.counts.sum()) == pytest.approx(5)
    _, latents = learner(given)
    weight = [float(latents["weighted"][i, at] / latents["colours"][i, at]) for i, at in ((0, red), (3, blue))]
    assert weight[1] > 1.5 * weight[0]


def test_grey_pictures_cost_nothing() -> None:
    learner, _ = build()
    coloured, grey = flat((200, 40, 40)), flat((90, 90, 90))
    out, latents = learner(batch(torch.cat([coloured, grey])))
    alone, _ = learner(batch(coloured))
    torch.testing.assert_close(out.total, alone.total / 2)
    assert float(latents["colours"][1].sum()) == 0
    nothing = learner(batch(grey))[0]
    assert nothing.total == 0
    assert all(x.isfinite() for x in nothing.metrics.values())


def test_the_chance_loss_is_that_of_the_best_blind_guess() -> None:
    """Of scores that are the same everywhere, and fitted."""
    learner, objective = build(neighbours=3)
    objective.counts += torch.arange(261.0)
    head = objective.head
    given = batch(flat((200, 40, 40), (40, 40, 200), (40, 200, 40), (40, 40, 210)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        _, latents = learner(given)
        wanted = latents["weighted"].sum(0)
        head.bias.copy_((wanted / wanted.sum() + 1e-30).log().repeat(4))  # type: ignore[operator, union-attr]
        out, _ = learner(given)
    assert out.metrics["chance_loss"].item() == pytest.approx(out.total.item(), rel=1e-4)
    assert out.total < math.log(261)


def test_colours_are_learned_from_lightness() -> None:
    """Of pictures that are red where dark, and blue where light."""
    learner, _ = build(predictor={"kind": "bert"})
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    dark, light = torch.tensor([120, 20, 20]), torch.tensor([150, 150, 255])
    for step in range(60):
        where = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(step)).repeat_interleave(2, 2)
        where = where.repeat_interleave(2, 3) < 0.5
        x = torch.where(where, dark.view(1, 3, 1, 1), light.view(1, 3, 1, 1)).to(torch.uint8)
        out, latents = learner(batch(x), step, 60)
        optimizer.zero_grad(), out.total.backward(), optimizer.step()
        learner.after_update({name: y.detach() for name, y in latents.items()}, learner.context(step, 60))
    assert out.metrics["accuracy"] > 0.9


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="cell: got 3, wanted a divisor of patch_size 2"):
        build(cell=3)
    learner, objective = build(patch_size=4, cell=2)
    with pytest.raises(
        ValueError, match=r"with tokens of \(2, 2\) pixels, wanted \[B, 3, H, W\] in tokens of patch_size 4"
    ):
        objective.check_views(toys.batch(2), learner.context())
    learner, objective = build()
    with pytest.raises(ValueError, match=r"got views \[2, 1, 8, 8\] of 'picture'"):
        objective.check_views(batch(torch.zeros(2, 1, 8, 8)), learner.context())
    with pytest.raises(ValueError, match="needs an encoder of pictures for 'words' with a grid of rows and columns"):
        ColorizationConfig.model_validate_json(json.dumps(CONFIG | {"modality": "words"})).build(
            {"words": toys.Words()}, Plan.unknown()
        )
