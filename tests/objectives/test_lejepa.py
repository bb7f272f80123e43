"""LeJEPA: one call a kind of views, fresh directions in each step, configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.seeding import fold
from mmssl.losses.sigreg import random_directions, sigreg, view_invariance
from mmssl.objectives.lejepa import LeJepaConfig, LeJepaObjective
from tests.contracts import toys

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "views": 2, "sigreg_weight": 0.1, "embedding": 6,
    "head": {"hidden": 20, "layers": 3},
}  # fmt: skip
LOCAL = {"views": 1, "local_view": "small", "local_views": 2}


def build(**changes: Any) -> tuple[Learner, LeJepaObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = LeJepaConfig.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


@pytest.mark.parametrize(
    ("changes", "needs", "encoded"),
    [({}, {"crop": 2}, [10]), (LOCAL, {"crop": 1, "small": 2}, [5, 10])],
    ids=["global", "local"],
)
def test_views_of_a_kind_go_through_the_encoder_in_one_call(
    changes: dict[str, Any], needs: dict[str, int], encoded: list[int]
) -> None:
    learner, objective = build(**changes)
    assert objective.needs() == {"picture": needs}
    calls: dict[str, list[int]] = {"encoder": [], "head": []}
    learner.encoders["picture"].register_forward_pre_hook(lambda _, inputs: calls["encoder"].append(len(inputs[0])))
    objective.head.register_forward_pre_hook(lambda _, inputs: calls["head"].append(len(inputs[0])))
    batch = toys.batch(5)
    _, latents = learner(batch)
    assert calls == {"encoder": encoded, "head": [sum(encoded)]}
    assert list(latents) == [f"{kind}{number}" for kind, count in needs.items() for number in range(count)]
    for name, x in latents.items():
        torch.testing.assert_close(x, learner.encoders["picture"](batch["picture"][name]).pooled)


@pytest.mark.parametrize(("changes", "global_views"), [({}, 2), (LOCAL, 1)], ids=["global", "local"])
def test_loss_is_the_weighted_sum_of_both_losses(changes: dict[str, Any], global_views: int) -> None:
    learner, objective = build(**changes)
    out, latents = learner(toys.batch(5), step=3)
    views = len(latents)
    x = objective.head(torch.cat(list(latents.values()))).unflatten(0, (views, 5))
    distance = sigreg(x, random_directions(x, 1024, torch.Generator().manual_seed(fold(0, "shared", "sigreg", 3))))
    torch.testing.assert_close(out.terms["sigreg"], 0.1 * distance)
    torch.testing.assert_close(out.terms["invariance"], 0.9 * view_invariance(x, global_views))
    torch.testing.assert_close(out.metrics["sigreg"], distance)
    torch.testing.assert_close(out.metrics["deviation"], x.flatten(0, 1).std(0, correction=0).mean())
    assert out.metrics["deviation_least"].item() == pytest.approx(0.1)
    assert out.metrics["collapse_loss"].item() == pytest.approx(0.1 * 0.402048 * 5, rel=1e-5)


def test_directions_are_new_in_each_step_and_the_same_in_a_step() -> None:
    learner, _ = build()
    batch = toys.batch(5)
    losses = []
    for seed, step in enumerate((0, 0, 1)):
        torch.manual_seed(seed)  # that of a process and a step
        losses.append(learner(batch, step)[0].terms["sigreg"].item())
    assert losses[0] == losses[1] != losses[2]
    assert losses[2] == pytest.approx(losses[0], rel=0.05)


def test_training_leads_away_from_collapse() -> None:
    learner, _ = build()
    batch = toys.batch(32)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    history = []
    for step in range(30):
        out, _ = learner(batch, step)
        out.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(out)
    first, last = history[0], history[-1]
    assert first.metrics["sigreg"] > 0.5 * first.metrics["collapse_loss"] / 0.1
    assert last.metrics["sigreg"] < 0.5 * first.metrics["sigreg"]
    assert last.total < first.total


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sigreg_weight": 0}, "greater than 0"),
        ({"sigreg_weight": 1}, "less than 1"),
        ({"views": 1}, "at least 2 views in all"),
        ({"views": 0}, "greater than or equal to 1"),
        ({"local_view": "small"}, "wanted both or neither"),
        ({"local_views": 2}, "wanted both or neither"),
        ({"local_view": "crop", "local_views": 2}, "the kind of the global views"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
        ({"modality": "a.b"}, "match pattern"),
        ({"lambda": 0.1}, "Extra inputs"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", list(CONFIG))
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        LeJepaConfig.model_validate_json(json.dumps(stated))


def test_a_missing_encoder_is_named() -> None:
    config = LeJepaConfig.model_validate_json(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"needs an encoder for 'picture', and the recipe has \['words'\]"):
        config.build({"words": toys.Words()}, Plan.unknown())
