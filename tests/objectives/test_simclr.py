"""SimCLR and COLA: one fused call, the head in the criterion, the bilinear similarity, configs."""

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
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "temperature": 0.2, "embedding": 6, "head": {"hidden": 20, "norm_last": True},
}  # fmt: skip
COLA: dict[str, Any] = {"similarity": "bilinear", "temperature": 1.0, "head": None}
BILINEAR = json.dumps({"kind": "simclr", **CONFIG, **COLA})
CASES = {
    "simclr, COLA": Case(BILINEAR, Reduction.GATHER, {"info_nce": math.log(SIZE)}),
    "simclr, COLA, absent": Case(BILINEAR, Reduction.GATHER, {"info_nce": math.log(5)}, FIVE),
    "simclr, COLA, batch norm": Case(
        json.dumps({"kind": "simclr", **CONFIG, **COLA, "head": {"hidden": 20}}),
        Reduction.STATISTIC,
        {"info_nce": math.log(SIZE)},
    ),
    "simclr, no hidden layer": Case(
        json.dumps({"kind": "simclr", **CONFIG, "head": None}), Reduction.GATHER, {"nt_xent": math.log(2 * SIZE - 1)}
    ),
}


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


def test_cola_is_the_cross_entropy_of_bilinear_similarities() -> None:
    learner, objective = build(**COLA)
    assert isinstance(objective.head, torch.nn.Linear)
    assert objective.head.bias is not None
    assert objective.bilinear is not None
    torch.nn.init.normal_(objective.bilinear.norm.weight)
    torch.nn.init.normal_(objective.bilinear.norm.bias)
    out, latents = learner(toys.batch(5))
    norm, W = objective.bilinear.norm, objective.bilinear.matrix.weight.T
    x, y = (
        torch.tanh(F.layer_norm(objective.head(latents[number]), (6,), norm.weight, norm.bias)) for number in ("0", "1")
    )
    similarities = torch.stack([torch.stack([one @ W @ other for other in y]) for one in x])
    torch.testing.assert_close(out.terms["info_nce"], F.cross_entropy(similarities, torch.arange(5)))
    assert out.metrics["chance_loss"].item() == pytest.approx(math.log(5))
    assert out.metrics["accuracy"].item() == (similarities.argmax(1) == torch.arange(5)).float().mean()
    assert not torch.allclose(out.terms["info_nce"], F.cross_entropy(similarities.T, torch.arange(5))), "one way"
    assert not torch.allclose(W, W.T)


def test_the_temperature_divides_bilinear_similarities() -> None:
    losses = []
    for temperature in (1.0, 1e9):
        learner, _ = build(**COLA | {"temperature": temperature})
        losses.append(learner(toys.batch(5))[0].total.item())
    assert losses[1] == pytest.approx(math.log(5))
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


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
        ({"similarity": "dot"}, "'cosine' or 'bilinear'"),
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
