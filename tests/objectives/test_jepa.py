"""JEPA: the paper's loop over steps, what student and teacher see, contexts of several masks, refusals."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.jepa import JepaConfig, JepaObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "jepa", "modality": "picture", "view": "crop", "masks": ["places"], "beta": 1.0, "momentum": 0.9,
    "predictor": {"width": 12, "depth": 1, "heads": 2},
}  # fmt: skip
VIDEO = CONFIG | {"masks": ["places", "long"], "beta": 0.0}
M2D = CONFIG | {"masks": ["mask"], "beta": None, "teacher_sees": "block", "evaluate": "student"}
ALIKE = {"jepa": 8**-0.5}  # the contract makes a unit vector of the errors of 8 samples
CASES = {
    "jepa": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE),
    "jepa, two masks": Case(json.dumps(VIDEO), Reduction.LOCAL, ALIKE),
    "jepa, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE, FIVE),
    "jepa, M2D": Case(json.dumps(M2D), Reduction.LOCAL, ALIKE),
    "jepa, M2D, absent": Case(json.dumps(M2D), Reduction.LOCAL, ALIKE, FIVE),
}


def build(**changes: Any) -> tuple[Learner, JepaObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = JepaConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"picture": encoder}, Plan.unknown())
    return Learner({"picture": encoder}, objective).double(), objective


def authors(student: Any, teacher: Any, predictor: Any, views: Any, kind: str) -> Tensor:
    """One step of facebookresearch/ijepa: targets with layer norm, a pass of the predictor for each block, smooth L1."""
    masks = views[f"{kind}0"]
    with torch.no_grad():
        h = teacher(views["crop0"]).tokens
        h = F.layer_norm(h, (h.size(-1),))
    losses = []
    for number in range(1, masks.shape[1]):
        for row, one in enumerate(masks):
            context, block = one[0].nonzero()[:, 0], one[number].nonzero()[:, 0]
            tokens = student(views["crop0"][row : row + 1], keep=context[None]).tokens
            x = torch.cat(
                [
                    predictor.embed(tokens) + predictor.positions[context],
                    (predictor.mask_token + predictor.positions[block])[None],
                ],
                1,
            )
            z = predictor.predict(predictor.norm(predictor.blocks(x)[:, len(context) :]))
            losses.append(F.smooth_l1_loss(z[0], h[row, block]))
    return torch.stack(losses).mean()


def test_three_steps_are_those_of_the_authors() -> None:
    """Loss, gradients, and the teacher, which moves after the student."""
    learner, objective = build()
    student, teacher = (copy.deepcopy(learner.encoders["picture"]) for _ in range(2))
    predictor = copy.deepcopy(objective.predictor)
    theirs = [*student.parameters(), *predictor.parameters()]
    trained = [p for p in learner.parameters() if p.requires_grad]
    ours, other = (torch.optim.SGD(found, lr=0.3) for found in (trained, theirs))
    for step in range(3):
        batch = toys.batch(4, seed=step)
        out, latents = learner(batch, step, 3)
        expected = authors(student, teacher, predictor, batch["picture"], "places")
        torch.testing.assert_close(out.terms["jepa"], expected, rtol=1e-10, atol=0)
        ours.zero_grad(), other.zero_grad(), out.total.backward(), expected.backward()
        torch.testing.assert_close([p.grad for p in trained], [p.grad for p in theirs], rtol=1e-6, atol=1e-10)
        ours.step(), other.step()
        learner.after_update({name: x.detach() for name, x in latents.items()}, learner.context(step, 3))
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * fast)
    torch.testing.assert_close([*learner.networks()["picture"].parameters()], [*teacher.parameters()])


def test_two_masks_count_alike_and_the_student_sees_the_context_alone() -> None:
    learner, _ = build(**VIDEO)
    learner.eval()
    batch = toys.batch(3)
    both = learner(batch)[0].total
    each = [build(masks=[kind], beta=0.0)[0].eval()(batch)[0].total for kind in VIDEO["masks"]]
    assert both.item() == pytest.approx(sum(float(one.detach()) for one in each) / 2, rel=1e-6)
    views = batch["picture"]
    learner, _ = build()
    hidden = ~views["places0"][:, 0]
    pixels = hidden.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    crop = torch.where(pixels, 255 - views["crop0"], views["crop0"])
    _, latents = learner(batch)
    _, changed = learner(Batch({"picture": {**views, "crop0": crop}}, batch.index))
    assert torch.equal(latents["prediction_sums"], changed["prediction_sums"])
    assert not torch.equal(latents["target_sums"], changed["target_sums"])
    assert latents["predictions"].tolist() == [6, 6, 6]


def m2d(student: Any, teacher: Any, predictor: Any, views: Any) -> Tensor:
    """A step of Masked Modeling Duo: each network sees what the other does not; 2 - 2 cosines of standardised targets."""
    losses = []
    for row, mask in enumerate(views["mask0"]):
        seen, hidden = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        one = views["crop0"][row : row + 1]
        with torch.no_grad():
            target = teacher(one, keep=hidden[None]).tokens[0]
            target = (target - target.mean(-1, keepdim=True)) / (
                target.var(-1, keepdim=True, correction=0) + 1e-5
            ).sqrt()
        tokens = predictor.embed(student(one, keep=seen[None]).tokens) + predictor.positions[seen]
        x = torch.cat([tokens, (predictor.mask_token + predictor.positions[hidden])[None]], 1)
        z = predictor.predict(predictor.norm(predictor.blocks(x)[0, len(seen) :]))
        losses.append((F.normalize(z, dim=-1) - F.normalize(target, dim=-1)).square().sum(-1).mean())
    return torch.stack(losses).mean()


def test_a_step_of_masked_modeling_duo_is_that_of_the_authors() -> None:
    learner, objective = build(**M2D)
    student, teacher = (copy.deepcopy(learner.encoders["picture"]) for _ in range(2))
    predictor = copy.deepcopy(objective.predictor)
    batch = toys.batch(4)
    out, _ = learner(batch)
    expected = m2d(student, teacher, predictor, batch["picture"])
    torch.testing.assert_close(out.terms["jepa"], expected, rtol=1e-10, atol=0)
    out.total.backward(), expected.backward()
    trained = [p.grad for p in learner.parameters() if p.requires_grad]
    torch.testing.assert_close(trained, [p.grad for p in (*student.parameters(), *predictor.parameters())])
    assert objective.evaluated() == {"picture": "student"}
    assert learner.networks()["picture"] is learner.encoders["picture"]


def test_the_teacher_sees_the_block_alone() -> None:
    batch = toys.batch(3)
    views = batch["picture"]
    pixels = (~views["mask0"]).view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    crop = torch.where(pixels, 255 - views["crop0"], views["crop0"])  # what the student sees
    for sees, same in (("block", True), ("view", False)):
        learner, _ = build(**M2D | {"teacher_sees": sees})
        _, latents = learner(batch)
        _, changed = learner(Batch({"picture": {**views, "crop0": crop}}, batch.index))
        assert torch.equal(latents["target_sums"], changed["target_sums"]) is same
        assert not torch.equal(latents["prediction_sums"], changed["prediction_sums"])


def test_a_collapse_is_seen_in_the_spread_of_targets() -> None:
    learner, _ = build()
    healthy = learner(toys.batch(6))[0].metrics
    assert healthy["target_std"] > healthy["target_std_least"].item() == pytest.approx(0.1)
    norm = learner.teachers["picture"].network.norm
    norm.weight.data.zero_()
    assert learner(toys.batch(6))[0].metrics["target_std"] < 1e-6


def test_masks_that_do_not_fit_are_refused() -> None:
    learner, objective = build(masks=["order"])
    with pytest.raises(
        ValueError, match=r"got masks torch.int64 \[2, 16\] .* wanted bool \[B, 1 \+ blocks, 16\] or \[B, 16\]"
    ):
        objective.check_views(toys.batch(2), learner.context())
    learner, objective = build()
    batch = toys.batch(2)
    batch["picture"]["places0"][1, 1, :] = True
    with pytest.raises(ValueError, match="got masks of kind 'places' of 3 to 16 tokens, wanted equal numbers"):
        learner(batch)
    with pytest.raises(ValidationError, match="wanted one kind of mask or more, each once"):
        build(masks=["places", "places"])
    with pytest.raises(ValueError, match="jepa needs an encoder for 'words' with a token grid"):
        JepaConfig.model_validate_json(json.dumps(CONFIG | {"modality": "words"})).build(
            toys.encoders(), Plan.unknown()
        )
