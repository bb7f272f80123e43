"""JEPA: the paper's loop over steps, what student and teacher see, contexts of several masks, refusals."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
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
from mmssl.objectives.parts.noises import normal_noise
from mmssl.objectives.parts.prototype_targets import PrototypeTargets
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "jepa", "modality": "picture", "view": "crop", "masks": ["places"], "beta": 1.0, "momentum": 0.9,
    "predictor": {"width": 12, "depth": 1, "heads": 2},
}  # fmt: skip
VIDEO = CONFIG | {"masks": ["places", "long"], "beta": 0.0}
M2D = CONFIG | {"masks": ["mask"], "beta": None, "teacher_sees": "block", "evaluate": "student"}
CONV = {"kind": "conv", "width": 8, "depth": 2, "groups": 4}
LAYERS = {
    "kind": "layers",
    "layers": 2,
    "outputs": "mlps",
    "norm": "instance",
    "norm_mean": True,
    "over_features": "sqrt",
}
EAT = CONFIG | {
    "masks": ["mask"], "draws": 2, "beta": None, "targets": LAYERS | {"pooled": 0.5}, "predictor": CONV, "evaluate": "student",
}  # fmt: skip
K = 7
PROTOTYPES = {
    "kind": "prototypes", "prototypes": K, "embedding": 5, "temperature": 0.25, "teacher_temperature": 0.125,
    "head": {"kind": "mlp", "layers": 3, "hidden": 12, "norm": "none", "activation": "gelu"}, "targets": {"kind": "centring"},
}  # fmt: skip
MASKCLIP = CONFIG | {"masks": ["mask"], "beta": None, "targets": PROTOTYPES, "evaluate": "student"}
BALANCED = MASKCLIP | {"draws": 2, "targets": PROTOTYPES | {"targets": {"kind": "sinkhorn", "iterations": 2}}}
UNIFORM = {"jepa": math.log(K)}  # predictions of a collapsed model are zeros
ALIKE = {"jepa": 8**-0.5}  # the contract makes a unit vector of the errors of 8 samples
CASES = {
    "jepa": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE),
    "jepa, two masks": Case(json.dumps(VIDEO), Reduction.LOCAL, ALIKE),
    "jepa, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE, FIVE),
    "jepa, M2D": Case(json.dumps(M2D), Reduction.LOCAL, ALIKE),
    "jepa, M2D, absent": Case(json.dumps(M2D), Reduction.LOCAL, ALIKE, FIVE),
    "jepa, EAT": Case(json.dumps(EAT), Reduction.LOCAL, ALIKE | {"pooled": 0.5 * 8**-0.5}),
    "jepa, EAT, absent": Case(json.dumps(EAT), Reduction.LOCAL, ALIKE | {"pooled": 0.5 * 8**-0.5}, FIVE),
    "jepa, prototypes": Case(json.dumps(MASKCLIP), Reduction.LOCAL, UNIFORM),
    "jepa, prototypes, absent": Case(json.dumps(MASKCLIP), Reduction.LOCAL, UNIFORM, FIVE),
    "jepa, prototypes, sinkhorn": Case(json.dumps(BALANCED), Reduction.STATISTIC, UNIFORM),
    "jepa, prototypes, sinkhorn, absent": Case(json.dumps(BALANCED), Reduction.STATISTIC, UNIFORM, FIVE),
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


def fairseq(student: Any, teacher: Any, predictor: Any, views: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of data2vec2.py of fairseq and of EAT, as means: of hidden tokens, and of the class token (here pooled features)."""
    with torch.no_grad():
        layers = teacher(views["crop0"], hidden=2, mlps=True).hidden  # the outputs of feed-forward layers
        y = sum(F.instance_norm(layer.transpose(1, 2)).transpose(1, 2) for layer in layers) / len(layers)
        y = F.layer_norm(y, y.shape[-1:])
    losses, classes = [], []
    for clone in range(2):
        for row, hidden in enumerate(views[f"mask{clone}"]):
            seen = (~hidden).nonzero()[:, 0]
            features = student(views["crop0"][row : row + 1], keep=seen[None])
            x = noise[clone, row].clone()
            x[seen] = features.tokens[0]
            x = x.transpose(0, 1).reshape(1, -1, *toys.GRID)
            for layer in predictor.layers:
                residual, x = x, layer(x).transpose(-3, -1)
                x = F.gelu(F.layer_norm(x, x.shape[-1:])).transpose(-3, -1)
                x = x + residual if residual.size(1) == x.size(1) else x
            x = predictor.predict(x.reshape(x.shape[1], -1).transpose(0, 1))
            losses.append(((x - y[row]) ** 2)[hidden].sum(-1).mean() / 16**0.5)
            classes.append(((features.pooled[0] - y[row].mean(0)) ** 2).sum() / 16**0.5)
    return torch.stack(losses).mean(), torch.stack(classes).mean()


def test_steps_of_data2vec_2_are_those_of_the_authors() -> None:
    """Two draws of a mask share one pass of the teacher; noise in holes is new for each step, sample and draw."""
    learner, objective = build(**EAT)
    student, teacher = (copy.deepcopy(learner.encoders["picture"]) for _ in range(2))
    predictor = copy.deepcopy(objective.predictor)
    trained = [p for p in learner.parameters() if p.requires_grad]
    theirs = [*student.parameters(), *predictor.parameters()]
    calls: list[int] = []
    learner.teachers["picture"].network.register_forward_hook(lambda *_: calls.append(1))
    noises = []
    for step in range(2):
        batch = toys.batch(4, seed=step)
        seeds = [learner.context(step, 2).generator(f"predictor/0/{draw}").initial_seed() for draw in (0, 1)]
        drawn = [normal_noise(batch.index, seed, torch.Size((16, 16))) for seed in seeds]
        noises.append(0.01 * torch.stack(drawn).double())
        tokens, pooled = fairseq(student, teacher, predictor, batch["picture"], noises[-1])
        out, _ = learner(batch, step, 2)
        torch.testing.assert_close(out.terms["jepa"], tokens, rtol=1e-10, atol=0)
        torch.testing.assert_close(out.terms["pooled"], 0.5 * pooled, rtol=1e-10, atol=0)
        out.total.backward(), (tokens + 0.5 * pooled).backward()
        torch.testing.assert_close([p.grad for p in trained], [p.grad for p in theirs])
    assert len(calls) == 2
    assert len({float(row[0, 0]) for noise in noises for draws in noise for row in draws}) == 2 * 2 * 4
    assert learner.objective.needs() == {"picture": {"crop": 1, "mask": 2}}


def test_a_draw_more_is_a_mean_and_no_other_loss() -> None:
    """The mask of a draw is drawn again where both are the same; and without `pooled`, there is no such term."""
    views = toys.batch(3)["picture"]
    twice = Batch({"picture": {**views, "mask1": views["mask0"]}}, torch.arange(3))
    quiet = EAT | {"predictor": CONV | {"deviation": 0.0}}
    both, once = (build(**quiet | {"draws": draws})[0](twice)[0] for draws in (2, 1))
    torch.testing.assert_close(dict(both.terms), dict(once.terms))
    assert build(**EAT | {"targets": LAYERS})[0](twice)[0].terms.keys() == {"jepa"}


def maskclip(
    student: Any, teacher: Any, predictor: Any, targets: Any, centre: Tensor, views: Any
) -> tuple[Tensor, Tensor]:
    """Masked self-distillation, token by token: cross entropy of centred and sharpened assignments; and their mean scores."""
    losses, scores = [], []
    unit = partial(F.normalize, dim=-1)
    for row, mask in enumerate(views["mask0"]):
        seen, hidden = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        one = views["crop0"][row : row + 1]
        tokens = predictor.embed(student(one, keep=seen[None]).tokens) + predictor.positions[seen]
        x = torch.cat([tokens, (predictor.mask_token + predictor.positions[hidden])[None]], 1)
        z = predictor.predict(predictor.norm(predictor.blocks(x)[0, len(seen) :]))
        with torch.no_grad():
            given = unit(targets.teacher_head.network(teacher(one).tokens[0, hidden]))
            found = given @ unit(targets.teacher_prototypes.network.weight).T
            wanted = ((found - centre) / 0.125).softmax(-1)
        logits = unit(targets.head(z)) @ unit(targets.prototypes.weight).T / 0.25
        losses.append(-(wanted * logits.log_softmax(-1)).sum(-1).mean())
        scores.append(found.mean(0))
    return torch.stack(losses).mean(), torch.stack(scores).mean(0)


def test_three_steps_of_masked_self_distillation_are_those_of_the_paper() -> None:
    """Loss, centre, and teachers of encoder, head and prototypes, which move after the student."""
    learner, objective = build(**MASKCLIP)
    targets = objective.targets
    assert isinstance(targets, PrototypeTargets)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.3)
    centre = torch.zeros(K, dtype=torch.float64)
    for step in range(3):
        batch = toys.batch(4, seed=step)
        student, teacher = learner.encoders["picture"], learner.teachers["picture"]
        expected, mean = maskclip(student, teacher, objective.predictor, targets, centre, batch["picture"])
        out, latents = learner(batch, step, 3)
        torch.testing.assert_close(out.terms["jepa"], expected, rtol=1e-10, atol=0)
        optimizer.zero_grad(), out.total.backward(), optimizer.step()
        before = targets.teacher_prototypes.network.weight.clone()
        found = {name: x.detach() for name, x in latents.items()} | out.kept
        learner.after_update(found, learner.context(step, 3))
        centre = 0.9 * centre + 0.1 * mean
        torch.testing.assert_close(targets.targets.centre, centre)
        torch.testing.assert_close(
            targets.teacher_prototypes.network.weight, 0.9 * before + 0.1 * targets.prototypes.weight
        )
    metrics = out.metrics
    assert metrics["chance_loss"].item() == pytest.approx(math.log(K))
    assert 1 <= metrics["prototypes_used"] <= K
    torch.testing.assert_close(metrics["kl"].double() + metrics["target_entropy"], out.total.double().detach())
    assert objective.headline({name: float(x) for name, x in metrics.items()}).chance == pytest.approx(math.log(K))


def test_parts_of_micro_batches_without_the_modality_have_the_shapes_of_others() -> None:
    learner, objective = build(**MASKCLIP)
    learner.optional = frozenset({"picture"})
    whole = toys.batch(4)
    batch = Batch(whole.views, whole.index, present={"picture": torch.tensor([True, True, False, False])})
    parts = [objective.encode(part, learner.context()) for part in batch.chunks(2)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.testing.assert_close(learner.criterion(joined, learner.context()).total, learner(whole.rows(0, 2))[0].total)


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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"targets": PROTOTYPES},
            "beta: got 1, wanted null: targets of kind 'prototypes' are compared by cross entropy",
        ),
        (EAT | {"teacher_sees": "block"}, "teacher_sees: got block, wanted view: targets of kind 'layers'"),
        (
            EAT | {"targets": LAYERS | {"layers": 3}},
            r"targets\.layers: got 3, wanted at most 2, the depth of encoders\.picture",
        ),
        (
            EAT | {"predictor": CONV | {"groups": 3, "width": 9}},
            "groups: got 3, wanted a divisor of the encoder's width 16",
        ),
        (EAT | {"predictor": CONV | {"groups": 3}}, "width: got 8, wanted a multiple of groups 3"),
        (EAT | {"predictor": CONV | {"kernel": 2}}, "kernel: got 2, wanted an odd number"),
        ({"predictor": {"width": 12, "depth": 1, "heads": 5}}, "width: got 12, wanted a multiple of heads 5"),
        ({"predictor": {"kind": "linear"}}, "'transformer', 'conv'"),
        ({"draws": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(**changes)


def test_a_predictor_is_a_transformer_where_no_kind_is_said() -> None:
    said = build(predictor=CONFIG["predictor"] | {"kind": "transformer"})[0]
    assert [x.shape for x in said.parameters()] == [x.shape for x in build()[0].parameters()]
