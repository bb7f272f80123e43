"""SimCLR: one fused call, the head in the criterion, configs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.nt_xent import nt_xent
from mmssl.objectives.simclr import SimClrConfig, SimClrObjective
from tests.contracts import toys

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "temperature": 0.2, "embedding": 6, "head": {"hidden": 20, "norm_last": True},
}  # fmt: skip


def build(**changes: Any) -> tuple[Learner, SimClrObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = SimClrConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def test_both_views_go_through_encoder_and_head_in_one_call() -> None:
    learner, objective = build()
    assert objective.needs() == {"picture": {"crop": 2}}
    seen: list[int] = []
    learner.encoders["picture"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    objective.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    _, latents = learner(toys.batch(5))
    assert seen == [10, 10]
    assert {name: x.shape for name, x in latents.items()} == {"0": (5, 16), "1": (5, 16)}


def test_loss_is_nt_xent_of_the_normalised_projections() -> None:
    learner, objective = build()
    batch = toys.batch(5)
    out, latents = learner(batch)
    for number in range(2):
        expected = learner.encoders["picture"](batch["picture"][f"crop{number}"]).pooled
        torch.testing.assert_close(latents[str(number)], expected)
    z = F.normalize(objective.head(torch.cat([latents["0"], latents["1"]])), dim=-1)
    torch.testing.assert_close(out.terms["nt_xent"], nt_xent(z[:5], z[5:], 0.2))
    assert out.metrics["chance_loss"].item() == pytest.approx(math.log(9))
    assert 0 <= out.metrics["accuracy"].item() <= 1


def test_two_kinds_are_one_view_of_each() -> None:
    learner, objective = build(view=["small", "crop"])
    assert objective.needs() == {"picture": {"small": 1, "crop": 1}}
    batch = toys.batch(5)
    _, latents = learner(batch)
    for number, name in enumerate(("small0", "crop0")):
        expected = learner.encoders["picture"](batch["picture"][name]).pooled
        torch.testing.assert_close(latents[str(number)], expected)


def test_views_of_one_picture_are_found() -> None:
    learner, _ = build()
    batch = toys.batch(6)
    batch.views["picture"]["crop1"].copy_(batch.views["picture"]["crop0"])  # type: ignore[index]
    assert learner(batch)[0].metrics["accuracy"].item() == 1


def test_reduction_follows_the_head() -> None:
    assert build()[1].reduction is Reduction.STATISTIC
    for norm in ("layer", "none"):
        assert build(head={"hidden": 20, "norm": norm})[1].reduction is Reduction.GATHER
    assert build()[1].heads() == {}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
        ({"head": {}}, "Field required"),
        ({"modality": "a.b"}, "match pattern"),
        ({"views": 2}, "Extra inputs"),
        ({"view": ["crop", "crop"]}, "wanted two different kinds; 'crop' alone gives two views of one kind"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", list(CONFIG))
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        SimClrConfig.model_validate_json(json.dumps(stated))


def test_a_missing_encoder_is_named() -> None:
    config = SimClrConfig.model_validate_json(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"needs an encoder for 'picture', and the recipe has \['words'\]"):
        config.build({"words": toys.Words()}, Plan.unknown())
