"""The pair graph: each term is the naive double cross-entropy of its pair alone, whatever else is in the batch or the recipe."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Learner, LossOutput
from mmssl.core.plan import Plan
from mmssl.objectives.clip import ClipConfig, ClipObjective
from tests.contracts import toys

VIEWS = {"picture": "crop", "words": "tokens", "sound": "window"}
ALL = [["picture", "words"], ["sound", "words"], ["picture", "sound"]]
SIZE = 10
ABSENT = {"words": (2, 7), "sound": (0, 2, 3), "picture": (9,)}
ways = pytest.mark.parametrize("tiles", [False, 4])


def learner(pairs: list[Any] = ALL, **options: Any) -> Learner:
    """In float64, with weights that do not depend on the pairs."""
    torch.manual_seed(0)
    encoders: dict[str, Encoder] = toys.encoders()
    names = {m for pair in pairs for m in (pair["modalities"] if isinstance(pair, dict) else pair)}
    views = {modality: kind for modality, kind in VIEWS.items() if modality in names}
    given = {"pairs": pairs, "views": views, "embedding": 8, "temperature": 0.1} | options
    objective = ClipConfig.model_validate_json(json.dumps(given)).build(encoders, Plan.unknown())
    for number, modality in enumerate(VIEWS):
        if modality in objective.heads():
            torch.manual_seed(number)
            torch.nn.init.normal_(objective.get_parameter(f"projections.{modality}.linear.weight"))
    needed = {modality: encoders[modality] for modality in objective.needs()}
    return Learner(needed, objective, optional=needed).double()


def batch(absent: dict[str, tuple[int, ...]] | None = None) -> Batch:
    whole = toys.batch(SIZE)
    present = {}
    for modality, rows in (absent or {}).items():
        present[modality] = torch.tensor([row not in rows for row in range(SIZE)])
    return Batch(whole.views, whole.index, whole.keys, present)


def embeddings(model: Learner, whole: Batch) -> dict[str, Tensor]:
    """Of all rows, blank ones too."""
    return {
        m: F.normalize(model.objective.heads()[m](model.encoders[m](whole[m][f"{VIEWS[m]}0"]).pooled), dim=-1)
        for m in model.objective.needs()
    }


def double_cross_entropy(a: Tensor, b: Tensor, scale: float, alike: Tensor | None = None) -> Tensor:
    """One number at a time."""
    losses = []
    for i in range(len(a)):
        candidates = [j for j in range(len(a)) if j == i or alike is None or not alike[i, j]]
        for one, other in ((a, b), (b, a)):
            logits = torch.stack([scale * one[i] @ other[j] for j in candidates])
            losses.append(logits.logsumexp(0) - scale * one[i] @ other[i])
    return torch.stack(losses).mean() if losses else torch.zeros(())


@ways
def test_each_pair_is_the_naive_double_cross_entropy(tiles: bool | int) -> None:
    """The mean of both directions: not one of them twice, and not divided by how many pairs there are."""
    model = learner(tiles=tiles)
    out, _ = model(batch())
    z = embeddings(model, batch())
    for first, second in ALL:
        expected = double_cross_entropy(z[first], z[second], 10.0)
        torch.testing.assert_close(out.terms[f"{first}-{second}"], expected, rtol=1e-6, atol=0)
        logits = 10.0 * z[first] @ z[second].T
        one_way = F.cross_entropy(logits, torch.arange(SIZE))
        assert abs(one_way - expected) > 1e-3  # a loss of one direction twice would be seen


@ways
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_a_pair_is_symmetric(tiles: bool | int, loss: str) -> None:
    for first, second in ALL:
        there, back = (
            learner([pair], loss=loss, tiles=tiles)(batch(ABSENT))[0].total
            for pair in ([first, second], [second, first])
        )
        torch.testing.assert_close(there, back, rtol=1e-6, atol=0)


@pytest.mark.parametrize("absent", [{}, ABSENT])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_adding_a_pair_does_not_rescale_the_others(number: int, absent: dict[str, tuple[int, ...]]) -> None:
    whole = batch(absent)
    out: LossOutput = learner(ALL[:number])(whole)[0]
    for pair in ALL[:number]:
        alone = learner([pair])(whole)[0]
        torch.testing.assert_close(out.terms["-".join(pair)], alone.total.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(out.total.double(), torch.stack(list(out.terms.values())).sum(), rtol=1e-6, atol=0)


@ways
def test_absent_samples_are_neither_rows_nor_candidates(tiles: bool | int) -> None:
    model, whole = learner(tiles=tiles), batch(ABSENT)
    out, _ = model(whole)
    z = embeddings(model, whole)
    for first, second in ALL:
        both = [i for i in range(SIZE) if i not in ABSENT[first] and i not in ABSENT[second]]
        name = f"{first}-{second}"
        torch.testing.assert_close(
            out.terms[name], double_cross_entropy(z[first][both], z[second][both], 10.0), rtol=1e-7, atol=0
        )
        assert out.metrics[f"{name}/samples"] == len(both)
        assert out.metrics[f"{name}/chance_loss"].item() == pytest.approx(math.log(len(both)), rel=1e-6)
        near = (z[first][both] @ z[second][both].T).argmax(1) == torch.arange(len(both))
        assert out.metrics[f"{name}/{first}_to_{second}_accuracy"].item() == pytest.approx(near.float().mean().item())


@ways
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_without_a_complete_sample_a_term_is_nothing(tiles: bool | int, loss: str) -> None:
    """Half of the samples are silent pictures, half are recordings: the two never meet."""
    model = learner(loss=loss, tiles=tiles)
    out, _ = model(batch({"picture": tuple(range(5)), "sound": tuple(range(5, 10))}))
    assert out.terms["picture-sound"] == 0
    assert all(x.isfinite() for x in out.metrics.values())
    out.terms["picture-sound"].backward(retain_graph=True)
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    out.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any() == ("picture-sound" not in name), name


@ways
def test_a_modality_that_no_sample_has_still_has_gradients(tiles: bool | int) -> None:
    model = learner(tiles=tiles)
    model(batch({"sound": tuple(range(SIZE))}))[0].total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all() == ("sound" in name), name


@ways
@pytest.mark.parametrize("absent", [{}, ABSENT])
def test_duplicates_are_no_negatives_when_asked(tiles: bool | int, absent: dict[str, tuple[int, ...]]) -> None:
    """Samples 1, 4 and 8 have one caption; 5 and 6 are one sample, drawn twice with different views and captions."""
    whole = batch(absent)
    whole["words"]["tokens0"][[4, 8]] = whole["words"]["tokens0"][1].clone()
    whole.index[6] = whole.index[5]
    caption, sample = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    caption[torch.tensor([[1], [4], [8]]), torch.tensor([1, 4, 8])] = True
    sample[5, 6] = sample[6, 5] = True
    out = learner(tiles=tiles, duplicates="ignore")(whole)[0]
    asked_not = learner(tiles=tiles)(whole)[0]
    z = embeddings(learner(), whole)
    for first, second in ALL:
        alike = sample | caption if "words" in (first, second) else sample
        both = [i for i in range(SIZE) if i not in absent.get(first, ()) and i not in absent.get(second, ())]
        name = f"{first}-{second}"
        for got, left_out in ((out, alike[both][:, both]), (asked_not, None)):
            expected = double_cross_entropy(z[first][both], z[second][both], 10.0, left_out)
            torch.testing.assert_close(got.terms[name], expected, rtol=1e-7, atol=0)
        candidates = len(both) - (alike & ~torch.eye(SIZE, dtype=torch.bool))[both][:, both].sum(1)
        chance = candidates.double().log().mean().item()
        assert out.metrics[f"{name}/chance_loss"].item() == pytest.approx(chance, rel=1e-6)
        repeated = (candidates < len(both)).double().mean().item()
        assert out.metrics[f"{name}/duplicates"].item() == pytest.approx(repeated, rel=1e-6)
        assert asked_not.metrics[f"{name}/duplicates"] == out.metrics[f"{name}/duplicates"]
        assert f"{name}/floor_loss" not in out.metrics
        floor = (1 + len(both) - candidates).double().log().mean().item()
        assert asked_not.metrics[f"{name}/floor_loss"].item() == pytest.approx(floor, rel=1e-6)


@pytest.mark.parametrize("groups", [[4, 3, 3], [1] * 10, [10], [2, 2, 1, 5]])
def test_the_floor_is_the_loss_of_perfect_embeddings(groups: list[int]) -> None:
    """One direction a group, and a temperature that leaves nothing to gain: the loss is that of groups told apart, no more."""
    kind = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
    whole = batch()
    whole["words"]["tokens0"][:] = whole["words"]["tokens0"][kind].clone()
    model = learner([ALL[0]])
    latents = model.objective.encode(whole, model.context())
    latents["picture"] = latents["words"] = torch.eye(10)[kind]
    with torch.no_grad():
        model.objective.get_parameter("logit_scale.picture-words").fill_(math.log(50))
    out = model.criterion(latents, model.context())
    assert out.metrics["picture-words/floor_loss"].item() == pytest.approx(out.total.item(), abs=1e-5)


def test_each_pair_has_its_loss_weight_temperature_and_bias() -> None:
    pairs = [
        ["picture", "words"],
        {"modalities": ["sound", "words"], "loss": "sigmoid", "temperature": 0.2, "bias": -3.0},
        {"modalities": ["picture", "sound"], "weight": 0.25, "temperature": 0.5},
    ]
    model = learner(pairs)
    out, _ = model(batch())
    z = embeddings(model, batch())
    assert {name: float(p.detach()) for name, p in model.objective.named_parameters() if p.ndim == 0} == {
        "logit_scale.picture-words": pytest.approx(math.log(10)),
        "logit_scale.sound-words": pytest.approx(math.log(5)),
        "logit_scale.picture-sound": pytest.approx(math.log(2)),
        "logit_bias.sound-words": -3.0,
    }
    logits = 5 * z["sound"] @ z["words"].T - 3
    sign = 2 * torch.eye(SIZE) - 1
    expected = {
        "picture-words": double_cross_entropy(z["picture"], z["words"], 10.0),
        "sound-words": -F.logsigmoid(sign * logits).sum() / SIZE,
        "picture-sound": 0.25 * double_cross_entropy(z["picture"], z["sound"], 2.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(out.terms[name], value, rtol=1e-6, atol=0)
    assert out.metrics["sound-words/bias"] == -3


def test_sigmoid_starts_at_the_bias_of_the_paper_and_guesses_with_the_entropy() -> None:
    model = learner([ALL[0]], loss="sigmoid")
    out, _ = model(batch())
    assert out.metrics["picture-words/bias"] == -10
    p = 1 / SIZE
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert out.metrics["picture-words/chance_loss"].item() == pytest.approx(SIZE * entropy, rel=1e-6)
    # That is what the best constant logit costs.
    blind = learner([ALL[0]], loss="sigmoid", bias=math.log(p / (1 - p)))
    with torch.no_grad():
        blind.objective.get_parameter("logit_scale.picture-words").fill_(-100)
    assert blind(batch())[0].total.item() == pytest.approx(SIZE * entropy, rel=1e-5)


@pytest.mark.parametrize("tiles", [None, False, 3])
def test_sigmoid_is_made_from_tiles_unless_told_otherwise(tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmssl.objectives.parts import contrast

    calls: list[Any] = []
    tiled = contrast.tiled_sigmoid_loss
    monkeypatch.setattr(contrast, "tiled_sigmoid_loss", lambda *a, **o: calls.append(o["size"]) or tiled(*a, **o))
    learner([ALL[0]], loss="sigmoid", tiles=tiles)(batch())
    assert calls == ([] if tiles is False else [tiles])


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_three_products_are_of_gpus(loss: str) -> None:
    """On the CPU they would cost three times as much: tiles are float32 there, bit for bit."""
    found = []
    for tiles in (True, "tf32x3"):
        model = learner([ALL[0]], loss=loss, tiles=tiles)
        model(batch())[0].total.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_one_temperature_for_all() -> None:
    model = learner(shared_temperature=True)
    (scale,) = [p for name, p in model.objective.named_parameters() if name.startswith("logit_scale")]
    apart = learner()
    for one in (model, apart):
        one(batch())[0].total.backward()
    gradients = [p.grad for name, p in apart.objective.named_parameters() if name.startswith("logit_scale")]
    assert len(gradients) == 3
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, torch.stack([x for x in gradients if x is not None]).sum())
    assert isinstance(model.objective, ClipObjective)
    with torch.no_grad():
        scale.fill_(9.0)
    model.objective.after_update({}, model.context())
    assert scale.exp().item() == pytest.approx(100)


def test_rows_that_lack_a_modality_cost_no_encoding() -> None:
    model = learner()
    rows: dict[str, int] = {}
    for modality, encoder in model.encoders.items():
        encoder.register_forward_pre_hook(lambda _, inputs, m=modality: rows.update({m: len(inputs[0])}))
    model(batch(ABSENT))
    assert rows == {"picture": 9, "words": 8, "sound": 7}


@ways
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_samples_that_do_not_belong_together_repel(tiles: bool | int, loss: str) -> None:
    """Without negatives a sigmoid loss is finite, falls, and collapses: each sample must feel every other one."""
    model = learner([ALL[0]], loss=loss, tiles=tiles)
    latents = model.objective.encode(batch(), model.context())
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in latents.items()}
    model.objective.criterion(leaves, model.context()).total.backward()
    gradient = leaves["picture"].grad
    assert gradient is not None
    for row in range(SIZE):
        moved = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in leaves.items()}
        with torch.no_grad():
            moved["words"][row] = -moved["words"][row]
        model.objective.criterion(moved, model.context()).total.backward()
        assert moved["picture"].grad is not None
        felt = (moved["picture"].grad - gradient).norm(dim=1)
        assert (felt > 1e-9).all(), row
