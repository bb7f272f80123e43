"""data2vec: loss, gradients and teacher of the paper's loop over steps; masks of words; what a collapse shows; configs."""

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
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.latent_prediction import LatentPredictionConfig, LatentPredictionObjective
from mmssl.objectives.parts.word_masks import mask_words
from mmssl.objectives.weighted import WeightedObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "latent_prediction", "modality": "picture", "view": "crop", "mask": "mask", "layers": 2, "norm": "layer",
    "norm_mean": True, "beta": 2.0, "over_features": "mean", "momentum": 0.9,
}  # fmt: skip
AUDIO = CONFIG | {"outputs": "mlps", "norm": "instance", "norm_mean": False, "beta": None, "over_features": "sqrt"}
TEXT = CONFIG | {
    "modality": "words", "view": "tokens", "mask": "order", "words": {"ratio": 0.35, "span": 2}, "norm_mean": False, "beta": 4.0,
    "over_features": "sum", "mean": "tokens", "predictor_layers": 2,
}  # fmt: skip
UNEVEN = CONFIG | {"mask": "uneven", "mean": "tokens", "over_features": "sum", "beta": 4.0, "predictor_layers": 2}
ALIKE = {"latent": 8**-0.5}  # the contract makes a unit vector of the errors of 8 samples
CASES = {
    "latent_prediction": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE),
    "latent_prediction, as for sounds": Case(json.dumps(AUDIO), Reduction.LOCAL, ALIKE),
    "latent_prediction, over tokens": Case(json.dumps(UNEVEN), Reduction.STATISTIC, ALIKE),
    "latent_prediction, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE, FIVE),
    "latent_prediction, over tokens, absent": Case(json.dumps(UNEVEN), Reduction.STATISTIC, ALIKE, FIVE),
}
START, END, CONTEXT = 28, 29, 10


def build(encoder: Encoder | None = None, **config: Any) -> tuple[Learner, LatentPredictionObjective]:
    torch.manual_seed(0)
    settings = CONFIG | config
    encoder = encoder or toys.Patches()
    objective = LatentPredictionConfig.model_validate_json(json.dumps(settings)).build(
        {settings["modality"]: encoder}, Plan.unknown()
    )
    return Learner({settings["modality"]: encoder}, objective), objective


def vit() -> Encoder:
    torch.manual_seed(1)
    shape = {"size": 8, "patch_size": 2, "width": 16, "depth": 3, "heads": 2}
    return VisionTransformerConfig(**shape).build().double()  # type: ignore[arg-type]


def tower(**changes: Any) -> Encoder:
    torch.manual_seed(1)
    shape = {"vocab_size": 30, "context_length": CONTEXT, "width": 16, "depth": 2, "heads": 2, "causal": False}
    return TextTransformerConfig(**(shape | changes)).build().double()


def texts(*words: int) -> Batch:
    """Texts of so many words each, of the context length, and an order of places."""
    random = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(words), CONTEXT, dtype=torch.int64)
    for row, n in enumerate(words):
        ids[row, : n + 2] = torch.tensor([START, *torch.randint(1, START, (n,), generator=random).tolist(), END])
    order = torch.rand(len(words), CONTEXT, generator=random).argsort(1)
    return Batch({"words": {"tokens0": ids, "order0": order}}, torch.arange(len(words)))


def fairseq(student: Encoder, teacher: Encoder, parts: Any, batch: Batch) -> Tensor:
    """data2vec_vision of fairseq: targets of the last blocks, smooth L1 on masked tokens (equal numbers in each picture)."""
    views, mask = batch["picture"], batch["picture"]["mask0"]
    with torch.no_grad():
        layers = teacher(views["crop0"], hidden=2).hidden
        y = sum(F.layer_norm(x.float(), x.shape[-1:]) for x in layers) / len(layers)
        y = F.layer_norm(y.float(), y.shape[-1:])[mask]
    x = student(views["crop0"], replace=(mask, parts.mask_token)).tokens
    x = parts.predictor(x[mask])
    return F.smooth_l1_loss(x.float(), y, beta=2.0, reduction="none").mean(-1).sum() / mask.sum()


def test_targets_of_mlps_are_what_these_add() -> None:
    """data2vec of sounds (fairseq): instance norm of the outputs of feed-forward layers before their residual connection."""
    learner, objective = build(vit(), **AUDIO)
    learner.double()
    batch, added = toys.batch(5), list[Tensor]()
    teacher = copy.deepcopy(learner.encoders["picture"])
    for block in list(teacher.blocks)[-2:]:  # type: ignore[arg-type]
        block.mlp.register_forward_hook(lambda _, __, out: added.append(out))
    with torch.no_grad():
        teacher(batch["picture"]["crop0"])
        y = sum(F.instance_norm(x[:, -16:].transpose(1, 2)).transpose(1, 2) for x in added) / 2
    mask = batch["picture"]["mask0"]
    x = learner.encoders["picture"](batch["picture"]["crop0"], replace=(mask, objective.mask_token)).tokens
    expected = ((objective.predictor(x) - y)[mask].square().sum(-1) / 16**0.5).mean()
    torch.testing.assert_close(learner(batch)[0].terms["latent"], expected, rtol=1e-10, atol=0)


def test_three_steps_are_those_of_the_paper() -> None:
    """Loss, gradients, weights of the student and of the teacher, which moves after the student."""
    learner, objective = build(vit())
    learner.double()
    student, teacher = (copy.deepcopy(learner.encoders["picture"]) for _ in range(2))
    parts = copy.deepcopy(objective)
    theirs = [*student.parameters(), *parts.parameters()]
    trained = [p for p in learner.parameters() if p.requires_grad]
    ours, other = (torch.optim.SGD(found, lr=0.3) for found in (trained, theirs))
    for step in range(3):
        batch = toys.batch(5, seed=step)
        out, latents = learner(batch, step, 3)
        expected = fairseq(student, teacher, parts, batch)
        torch.testing.assert_close(out.total.double(), expected.double(), rtol=1e-5, atol=0)
        ours.zero_grad(), other.zero_grad(), out.total.backward(), expected.backward()
        torch.testing.assert_close([p.grad for p in trained], [p.grad for p in theirs], rtol=1e-4, atol=1e-7)
        ours.step(), other.step()
        learner.after_update({name: x.detach() for name, x in latents.items()}, learner.context(step, 3))
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * fast)
    followed = learner.teachers["picture"].network
    torch.testing.assert_close([*followed.parameters()], [*teacher.parameters()], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(followed.positional_embedding, student.positional_embedding, rtol=1e-3)


def test_student_sees_the_mask_and_the_teacher_the_whole_view() -> None:
    learner, objective = build()
    learner.eval()
    batch = toys.batch(3)
    hidden = batch["picture"]["mask0"].view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    crop = batch["picture"]["crop0"]
    other = Batch({"picture": {**batch["picture"], "crop0": torch.where(hidden, 255 - crop, crop)}}, batch.index)
    _, latents = learner(batch)
    _, changed = learner(other)
    assert torch.equal(latents["prediction_sums"], changed["prediction_sums"])
    assert not torch.equal(latents["target_sums"], changed["target_sums"])
    assert latents["count"].tolist() == [6, 6, 6]
    assert objective.evaluated() == {}
    assert objective.teachers().keys() == {"picture"}


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)])
def test_parts_of_a_sum_share_one_pass_of_the_teacher_whichever_reads_more_layers(layers: tuple[int, int]) -> None:
    encoder = vit().float()
    parts = {}
    for name, count in zip("ab", layers, strict=True):
        _, parts[name] = build(encoder, layers=count)
    learner = Learner({"picture": encoder}, WeightedObjective(parts, dict.fromkeys(parts, 1.0)))
    passes = []
    learner.teachers["picture"].network.register_forward_hook(lambda *_: passes.append(1))
    _, together = learner(toys.batch(3))
    assert len(passes) == 1
    for name, part in parts.items():
        _, alone = Learner({"picture": encoder}, part)(toys.batch(3))
        assert torch.equal(together[f"{name}/target_sums"], alone["target_sums"])


def test_means_over_samples_and_over_tokens_differ_where_counts_do() -> None:
    found = {}
    for mean in ("samples", "tokens"):
        learner, objective = build(mask="uneven", mean=mean)
        out, latents = learner(toys.batch(6))
        error, count = latents["error"], latents["count"].float()
        assert count.unique().numel() > 2
        expected = error.mean() if mean == "samples" else (error * count).sum() / count.sum()
        torch.testing.assert_close(out.total, expected)
        found[objective.reduction] = out.total.item()
    assert found.keys() == {Reduction.LOCAL, Reduction.STATISTIC}
    assert len(set(found.values())) == 2


def test_a_collapse_is_seen_in_the_spread_of_targets() -> None:
    learner, objective = build(**AUDIO)
    healthy = learner(toys.batch(6))[0].metrics
    assert healthy["target_std"] > healthy["target_std_least"].item() == pytest.approx(0.1)
    assert healthy["prediction_std"] > 0.05
    with torch.no_grad():
        for network in (learner.encoders["picture"], learner.teachers["picture"].network):
            network.embed.weight.zero_(), network.positions.zero_()
        objective.mask_token.copy_(learner.encoders["picture"].embed.bias)  # type: ignore[union-attr]
    collapsed = learner(toys.batch(6))[0].metrics
    assert collapsed["target_std"] < 0.01
    assert collapsed["prediction_std"] < 0.01


def loop(order: list[int], words: int, ratio: float, span: int) -> list[bool]:
    """Masked places of a text of so many words between start and end."""
    places = range(1, words + 1)
    wanted, masked = min(words, max(1, round(ratio * words))), []
    for start in (place for place in order if place in places):
        for place in range(start, start + span):
            if place in places and place not in masked and len(masked) < wanted:
                masked.append(place)
    return [place in masked for place in range(len(order))]


@pytest.mark.parametrize(("ratio", "span"), [(0.15, 1), (0.35, 4), (0.35, 2), (0.9, 3), (0.01, 4)])
def test_words_are_masked_as_by_a_loop(ratio: float, span: int) -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.rand(9, 14, generator=random).argsort(1)
        words = [0, 1, 2, 3, 5, 7, 9, 10, 12]
        real = torch.arange(14) < torch.tensor(words)[:, None] + 2
        expected = [loop(row, n, ratio, span) for row, n in zip(order.tolist(), words, strict=True)]
        assert mask_words(order, real, ratio, span).tolist() == expected
        trimmed = mask_words(order[:8], real[:8, :12], ratio, span)  # padding is cut off where no text needs it
        assert trimmed.tolist() == [row[:12] for row in expected[:8]]


def test_an_order_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted int64 \[1, 5 or more\]"):
        mask_words(torch.arange(4)[None], torch.ones(1, 5, dtype=torch.bool), 0.15)


def test_texts_are_predicted_at_some_of_their_words() -> None:
    """Never at start, end and padding, whose ids change nothing; and every parameter learns."""
    learner, _ = build(tower(), **TEXT)
    learner.double()
    batch = texts(1, 4, 8, 6)
    out, latents = learner(batch)
    assert latents["count"].tolist() == [1, 1, 3, 2]
    out.total.backward()
    assert not [name for name, p in learner.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    ids = batch["words"]["tokens0"]
    padded = torch.where(torch.arange(CONTEXT) > ids.argmax(1, keepdim=True), 5, ids)
    assert not torch.equal(padded, ids)
    other = learner(Batch({"words": {**batch["words"], "tokens0": padded}}, batch.index))[0]
    torch.testing.assert_close(other.total, out.total)


@pytest.mark.parametrize(("mean", "share"), [("tokens", 1.0), ("samples", 2 / 3)])
def test_a_text_without_words_adds_nothing(mean: str, share: float) -> None:
    learner, _ = build(tower(), **TEXT | {"mean": mean})
    learner.double()
    batch = texts(4, 8, 0)
    out, latents = learner(batch)
    assert (latents["count"][2], latents["error"][2]) == (0, 0)
    torch.testing.assert_close(out.total, share * learner(batch.rows(0, 2))[0].total)


@pytest.mark.parametrize(
    ("encoder", "config", "complaint"),
    [
        (toys.Patches, {"layers": 3}, r"layers: got 3, wanted at most 2, the depth of encoders\.picture"),
        (toys.Patches, {"words": {"ratio": 0.15}}, "words: got ratio 0.15, wanted nothing for 'picture'"),
        (tower, TEXT | {"words": None}, "words: got nothing, wanted a ratio for 'words'"),
        (lambda: tower(causal=True), TEXT, r"lacks \['bidirectional'\]; set causal: false"),
    ],
)
def test_unsuitable_encoders_are_refused(encoder: Any, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(encoder(), **config)


def test_a_mask_of_another_grid_is_refused() -> None:
    learner, _ = build(mask="order")
    with pytest.raises(
        ValueError, match=r"got masks torch.int64 \[3, 16\] from modalities.picture.views.order, wanted bool"
    ):
        learner(toys.batch(3))
    learner, _ = build()
    batch = toys.batch(3)
    short = Batch({"picture": {**batch["picture"], "mask0": batch["picture"]["mask0"][:, :9]}}, batch.index)
    with pytest.raises(ValueError, match=r"wanted bool \[B, 16\] for the tokens of the view 'crop'"):
        learner(short)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"layers": 0}, "greater than 0"),
        ({"norm": "batch"}, "'layer' or 'instance'"),
        ({"momentum": {"kind": "linear", "start": 0.9}}, "without final"),
        ({"words": {"ratio": 1.0}}, "less than 1"),
        ({"predictor_layers": 0}, "greater than or equal to 1"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


@pytest.mark.parametrize("field", [name for name in CONFIG if name != "kind"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        LatentPredictionConfig.model_validate_json(json.dumps(stated))
