"""PIRL: golden value and bank, tiles of the own picture, the rows that a step moves, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.queue_info_nce import queue_info_nce
from mmssl.objectives.pirl import PirlConfig, PirlObjective
from tests.contracts import toys
from tests.contracts.case import Case
from tests.losses.inputs import golden_rows, sines

CONFIG: dict[str, Any] = {
    "kind": "pirl", "modality": "picture", "view": "crop", "tiles": "wide", "jigsaw": {"side": 2, "permutations": 4, "tile": 8},
    "negatives": 6, "temperature": 0.2, "weight": 0.25, "embedding": 5, "head": {"kind": "mlp", "hidden": 9, "norm": "none"},
}  # fmt: skip
PLAN = Plan(total_steps=50, batch_size=8, samples=8)
GOLDEN, GOLDEN_BANK = 2.9881041475376238, 26.47711973342089
"""Of ssl-golden-values-2.json: pirl_infonce_t0.1, pirl_bank_after_update_sum_abs."""


def build(**changes: Any) -> tuple[Learner, PirlObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = PirlConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"picture": encoder}, PLAN)
    return Learner({"picture": encoder}, objective).double(), objective


def negatives() -> torch.Tensor:
    """Numbers of the rows that are drawn in the first step, [6]."""
    return torch.randint(8, (6,), generator=build()[0].context().generator("negatives"))


EQUAL = float((7 - negatives().bincount(minlength=8)).double().log().mean())
"""ln of the number of candidates of each sample, mean: all 8 rows of the bank are of this batch, and own ones are left out."""
CASES = {
    "pirl": Case(
        json.dumps(CONFIG), Reduction.LOCAL, {"image": 0.75 * EQUAL, "tiles": 0.25 * EQUAL}, updates=60, plan=PLAN
    ),
}


def test_golden_value_of_both_views() -> None:
    bank = F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=1)
    found = []
    for rows in golden_rows():
        v = F.normalize(rows, dim=1)
        for i in range(8):
            others = bank[[(i + 1 + 3 * k) % 12 for k in range(5)]]
            found.append(queue_info_nce(v[i : i + 1], bank[i : i + 1], others, 0.1)[0])
    assert torch.stack(found).mean().item() == pytest.approx(GOLDEN, rel=1e-12)


def test_golden_bank_after_a_step() -> None:
    _, objective = build(embedding=16)
    objective.bank.rows = F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=1)
    image = F.normalize(golden_rows()[0], dim=1)
    objective.after_update({"bank/index": torch.arange(8), "bank/rows": image}, None)  # type: ignore[arg-type]
    assert objective.bank.rows[:8].abs().sum().item() == pytest.approx(GOLDEN_BANK, rel=1e-12)


def test_loss_is_that_of_the_rows_that_were_drawn() -> None:
    learner, objective = build()
    batch = toys.batch(6)
    out, latents = learner(batch, 3, 50)
    ctx = learner.context(3, 50)
    drawn = torch.randint(8, (6,), generator=ctx.generator("negatives"))
    bank, own = objective.bank.rows, batch.index[:, None] == drawn
    assert own.any(), "a row that is drawn is no negative of its own sample"
    assert bank.norm(dim=1).tolist() == pytest.approx([1] * 8)
    for name, weight in (("image", 0.75), ("tiles", 0.25)):
        v = F.normalize(latents[name], dim=1)
        logits = (
            torch.cat([(v * bank[:6]).sum(1, keepdim=True), (v @ bank[drawn].T).masked_fill(own, -torch.inf)], 1) / 0.2
        )
        expected = weight * F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
        torch.testing.assert_close(out.terms[name], expected)
    before = bank.clone()
    learner.after_update({name: x.detach() for name, x in (latents | out.kept).items()}, ctx)
    moved = (objective.bank.rows != before).any(1)
    assert moved.tolist() == [True] * 6 + [False] * 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="head: got norm: batch, wanted layer or none"):
        build(head={"kind": "mlp", "hidden": 9, "norm": "batch"})
    learner, objective = build(jigsaw={"side": 2, "permutations": 2, "tile": 8})
    with pytest.raises(ValueError, match=r"got numbers \[8\] up to 3 .* wanted \[B\] below 2"):
        objective.check_views(toys.batch(8), learner.context())
