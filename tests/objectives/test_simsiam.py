"""SimSiam: a call for each view, the stop-gradient, the predictor, what a collapse shows, configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.monitors import spread
from mmssl.core.objective import Learner, ParameterRule, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.simsiam import SimSiamConfig, SimSiamObjective
from tests.contracts import toys

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "embedding": 6,
    "head": {"hidden": 20, "layers": 3, "norm_last": True}, "predictor": {"hidden": 8},
}  # fmt: skip
LOCAL = {"head": {"hidden": 20, "norm": "layer", "norm_last": True}, "predictor": {"hidden": 8, "norm": "none"}}


def build(**changes: Any) -> tuple[Learner, SimSiamObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = SimSiamConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def test_each_view_goes_through_encoder_head_and_predictor_in_a_call_of_its_own() -> None:
    """Batch norm sees one view at a time, as in the paper's code."""
    learner, objective = build()
    assert objective.needs() == {"picture": {"crop": 2}}
    assert objective.heads() == {}
    seen: dict[str, list[int]] = {"encoder": [], "head": [], "predictor": []}
    modules = {"encoder": learner.encoders["picture"], "head": objective.head, "predictor": objective.predictor}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(len(inputs[0])))
    batch = toys.batch(5)
    _, latents = learner(batch)
    assert seen == {"encoder": [5, 5], "head": [5, 5], "predictor": [5, 5]}
    for number in range(2):
        expected = learner.encoders["picture"](batch["picture"][f"crop{number}"]).pooled
        torch.testing.assert_close(latents[str(number)], expected)


def paper(learner: Learner, size: int) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 1: the loss of a batch, and the projections."""
    batch, objective = toys.batch(size), learner.objective
    assert isinstance(objective, SimSiamObjective)
    z1, z2 = (objective.head(learner.encoders["picture"](batch["picture"][f"crop{i}"]).pooled) for i in range(2))

    def distance(p: Tensor, z: Tensor) -> Tensor:
        return -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(1).mean()

    return distance(objective.predictor(z1), z2) / 2 + distance(objective.predictor(z2), z1) / 2, [z1, z2]


def test_loss_and_gradients_are_those_of_the_papers_algorithm() -> None:
    learner, _ = build()
    expected, projections = paper(learner, 5)
    wanted = torch.autograd.grad(expected, list(learner.parameters()))
    out, _ = learner(toys.batch(5))
    torch.testing.assert_close(out.terms["negative_cosine"], expected)
    torch.testing.assert_close(out.metrics["spread"], (spread(projections[0]) + spread(projections[1])) / 2)
    torch.testing.assert_close(torch.autograd.grad(out.total, list(learner.parameters())), wanted)


def test_the_last_norm_of_the_head_has_no_scale_and_shift() -> None:
    _, objective = build()
    assert list(dict(objective.head.named_parameters()))[-1] == "steps.6.weight"  # of the last linear layer


def test_collapse_reaches_the_optimum_and_shows_in_the_spread() -> None:
    learner, objective = build(**LOCAL)
    objective.predictor = nn.Identity()
    healthy, latents = learner(toys.batch(5))
    alike = {name: torch.ones_like(x) for name, x in latents.items()}
    collapsed = learner.criterion(alike, learner.context())
    assert collapsed.total.item() == pytest.approx(-1, abs=1e-6)
    assert collapsed.metrics["spread"].item() == pytest.approx(0, abs=2e-3)
    assert healthy.metrics["spread"] > 0.1
    assert objective.headline({"spread": 0.7}).chance is None


def test_without_batch_norm_the_loss_is_a_mean_over_samples() -> None:
    learner, objective = build(**LOCAL)
    assert objective.reduction is Reduction.LOCAL
    assert objective.least_samples == 1
    whole = toys.batch(6)
    expected = torch.autograd.grad(learner(whole)[0].total, list(learner.parameters()))
    parts = torch.stack([learner(part)[0].total for part in whole.chunks(2)]).mean()
    torch.testing.assert_close(torch.autograd.grad(parts, list(learner.parameters())), expected)
    assert build()[1].reduction is Reduction.STATISTIC
    assert build()[1].least_samples == 2
    assert build(head=LOCAL["head"])[1].reduction is Reduction.STATISTIC
    assert build(predictor=LOCAL["predictor"])[1].reduction is Reduction.STATISTIC


def test_the_rate_of_the_predictor_is_constant_unless_that_is_turned_off() -> None:
    assert build()[1].parameter_groups() == {"predictor": ParameterRule(constant_rate=True)}
    assert build(constant_predictor_rate=False)[1].parameter_groups() == {}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"embedding": 0}, "greater than 0"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
        ({"predictor": {"hidden": 0}}, "greater than 0"),
        ({"modality": "a.b"}, "match pattern"),
        ({"views": 2}, "Extra inputs"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", list(CONFIG))
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        SimSiamConfig.model_validate_json(json.dumps(stated))


def test_a_missing_encoder_is_named() -> None:
    config = SimSiamConfig.model_validate_json(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"needs an encoder for 'picture', and the recipe has \['words'\]"):
        config.build({"words": toys.Words()}, Plan.unknown())
