"""Joint masked autoencoders of two modalities: losses by hand, each modality tells the other, refusals."""

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
from mmssl.losses.mae import normalise_patches, patchify
from mmssl.objectives.joint_mae import JointMaeConfig, JointMaeObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "joint_mae", "modalities": ["picture", "sound"], "views": {"picture": "crop", "sound": "window"},
    "orders": {"picture": "order", "sound": "order"}, "patch_values": {"picture": 12, "sound": 12}, "joint_heads": 2,
    "decoder": {"width": 16, "depth": 1, "heads": 2}, "contrast": 0.5, "temperature": 0.5,
}  # fmt: skip
ZERO = 11 / 12  # of normalised patches of 12 values


def collapsed(size: int) -> dict[str, float]:
    return {"picture": ZERO, "sound": ZERO, "contrast": 0.5 * math.log(size)}


CASES = {
    "joint_mae": Case(json.dumps(CONFIG), Reduction.GATHER, collapsed(SIZE)),
    "joint_mae, absent": Case(json.dumps(CONFIG), Reduction.GATHER, collapsed(5), FIVE),
    "joint_mae, no contrast": Case(
        json.dumps(CONFIG | {"contrast": 0}), Reduction.LOCAL, {"picture": ZERO, "sound": ZERO}
    ),
}


def build(**changes: Any) -> tuple[Learner, JointMaeObjective]:
    torch.manual_seed(0)
    encoders = toys.encoders()
    made = JointMaeConfig.model_validate_json(json.dumps(CONFIG | changes)).build(encoders, Plan.unknown())
    return Learner({name: encoders[name] for name in made.modalities}, made), made


def test_losses_by_hand() -> None:
    learner, objective = build()
    whole, ctx = toys.batch(SIZE), learner.context()
    latents = objective.encode(whole, ctx)
    out = objective.criterion(latents, ctx)
    pooled = {}
    for name, view in (("picture", "crop0"), ("sound", "window0")):
        keep = whole[name]["order0"][:, :4].sort(1).values
        pooled[name] = F.normalize(ctx.encoders[name](whole[name][view], keep=keep).pooled, dim=-1)
        target = normalise_patches(patchify(whole[name][view] / 127.5 - 1, (2, 2)))
        prediction = latents[f"{name}/prediction"]
        assert prediction.shape == (SIZE, 16, 12)
        hidden = [[t for t in range(16) if t not in keep[i]] for i in range(SIZE)]
        errors = [(prediction[i, rows] - target[i, rows]).square().mean() for i, rows in enumerate(hidden)]
        torch.testing.assert_close(out.terms[name], torch.stack(errors).mean())
    logits = pooled["picture"] @ pooled["sound"].T / 0.5
    both = [F.cross_entropy(x, torch.arange(SIZE)) for x in (logits, logits.T)]
    torch.testing.assert_close(out.terms["contrast"], 0.5 * (both[0] + both[1]) / 2)
    assert set(objective.heads()) == {"picture", "sound"}
    assert float(objective.logit_scales()["picture", "sound"]) == 2


def test_without_contrast_there_is_no_shared_space() -> None:
    _, objective = build(contrast=0)
    assert not objective.heads()
    assert not objective.logit_scales()


def test_hidden_patches_are_told_by_the_other_modality() -> None:
    """Flat pictures of a random grey whose sounds are the same: seen sounds of the wrong sample make predictions worse."""
    learner, objective = build(normalise_targets=False, contrast=0)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    random = torch.Generator().manual_seed(0)

    def given(count: int, other: bool = False) -> Batch:
        grey = torch.randint(0, 256, (count, 1, 1, 1), generator=random, dtype=torch.uint8).expand(-1, 3, 8, 8)
        orders = [torch.rand(count, toys.TOKENS, generator=random).argsort(1) for _ in range(2)]
        sound = grey.flip(0) if other else grey
        views = {"picture": {"crop0": grey, "order0": orders[0]}, "sound": {"window0": sound, "order0": orders[1]}}
        return Batch(views, torch.arange(count))

    def loss(batch: Batch) -> Tensor:
        ctx = learner.context()
        latents = objective.encode(batch, ctx)
        return objective.criterion(latents, ctx).terms["picture"]

    for parameter in learner.encoders["picture"].parameters():  # nothing is seen of pictures themselves
        parameter.requires_grad_(False).zero_()
    for _ in range(150):
        optimizer.zero_grad()
        found = loss(given(32))
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        right, wrong = loss(given(64)), loss(given(64, other=True))
    assert right < 0.25 * wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": {"picture": "crop"}}, r"views: got \['picture'\], wanted one entry for each of 'picture' and 'sound'"),
        ({"joint_heads": 3}, "joint_heads: got 3, wanted a divisor of the encoders' width 16"),
        ({"mask_ratio": 0.99}, "leaves 0 visible"),
        (
            {name: {"picture": CONFIG[name]["picture"], "words": "x"} for name in ("views", "orders")}
            | {"modalities": ["picture", "words"], "patch_values": {"picture": 12, "words": 12}},
            "encoders with a token grid, and that of 'words'",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_views_that_do_not_fit() -> None:
    learner, objective = build(patch_values={"picture": 12, "sound": 11})
    with pytest.raises(ValueError, match="patch_values: got 11, wanted 12"):
        objective.check_views(toys.batch(2), learner.context())
    learner, objective = build()
    whole = toys.batch(2)
    views = {name: dict(whole[name]) for name in ("picture", "sound")}
    views["sound"]["order0"] = views["sound"]["order0"][:, :9]
    with pytest.raises(ValueError, match=r"token orders \[2, 9\] from modalities.sound.views.order, wanted \[B, 16\]"):
        objective.check_views(Batch(views, whole.index), learner.context())
