"""VICReg: views apart in encoder and head, the head in the criterion, configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mmssl.core.objective import Headline, Learner
from mmssl.core.plan import Plan
from mmssl.losses.vicreg import vicreg
from mmssl.objectives.vicreg import VicRegConfig, VicRegObjective
from tests.contracts import toys

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "invariance_weight": 20, "variance_weight": 30, "covariance_weight": 2,
    "embedding": 6, "head": {"hidden": 20, "layers": 3},
}  # fmt: skip


def build(**changes: Any) -> tuple[Learner, VicRegObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = VicRegConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def test_each_view_goes_through_encoder_and_head_by_itself() -> None:
    """Batch normalisation sees one view at a time, as in the authors' code."""
    learner, objective = build()
    assert objective.needs() == {"picture": {"crop": 2}}
    seen: list[int] = []
    learner.encoders["picture"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    objective.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    _, latents = learner(toys.batch(5))
    assert seen == [5, 5, 5, 5]
    assert {name: x.shape for name, x in latents.items()} == {"0": (5, 16), "1": (5, 16)}


def test_terms_are_those_of_the_projections() -> None:
    learner, objective = build()
    batch = toys.batch(5)
    out, latents = learner(batch)
    for number in range(2):
        expected = learner.encoders["picture"](batch["picture"][f"crop{number}"]).pooled
        torch.testing.assert_close(latents[str(number)], expected)
    loss = vicreg(objective.head(latents["0"]), objective.head(latents["1"]))
    torch.testing.assert_close(out.terms["invariance"], 20 * loss.invariance)
    torch.testing.assert_close(out.terms["variance"], 30 * loss.variance)
    torch.testing.assert_close(out.terms["covariance"], 2 * loss.covariance)
    assert out.metrics["deviation_least"].item() == pytest.approx(0.1)
    shown = objective.headline({name: float(x) for name, x in out.metrics.items()})
    assert shown == Headline(pytest.approx(30 * 0.99), {"deviation": pytest.approx(float(loss.deviation))})


def test_equal_views_are_no_distance_apart() -> None:
    learner, _ = build()
    batch = toys.batch(6)
    assert learner(batch)[0].terms["invariance"] > 1e-3
    batch.views["picture"]["crop1"].copy_(batch.views["picture"]["crop0"])  # type: ignore[index]
    assert learner(batch)[0].terms["invariance"] == 0


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_last_layer_has_no_bias_that_could_not_learn(norm: str) -> None:
    head = build(head={"hidden": 20, "layers": 3, "norm": norm})[1].head
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    assert last.bias is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"invariance_weight": 0}, "greater than 0"),
        ({"variance_weight": 0}, "greater than 0"),
        ({"covariance_weight": -1}, "greater than 0"),
        ({"embedding": 1}, "greater than or equal to 2"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
        ({"head": {"hidden": 4, "norm_last": True}}, "norm_last: got true, .* leave norm_last out"),
        ({"views": 1}, "Extra inputs"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", list(CONFIG))
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        VicRegConfig.model_validate_json(json.dumps(stated))


def test_a_missing_encoder_is_named() -> None:
    config = VicRegConfig.model_validate_json(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"needs an encoder for 'picture', and the recipe has \['words'\]"):
        config.build({"words": toys.Words()}, Plan.unknown())


def test_one_sample_is_refused() -> None:
    learner, objective = build()
    assert objective.least_samples == 2
    with pytest.raises(ValueError, match="got 1 row over all processes, wanted at least 2"):
        learner(toys.batch(1))
