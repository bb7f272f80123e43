"""Predictive pairs: the paper's loss and its gradients, sums with contrastive pairs, what evaluators compare, configs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.core.seeding import fold
from mmssl.losses.sigreg import random_directions, sigreg_of_collapse, sigreg_of_normal
from mmssl.objectives.clip import ClipConfig
from tests.contracts import toys
from tests.contracts.case import SIZE, Case

PREDICTION = {"predictor": {"kind": "linear"}, "sigreg_weight": 0.1, "directions": 16}
TWO: dict[str, Any] = {
    "kind": "clip", "loss": "predictive", "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"},
    "embedding": 4, "prediction": PREDICTION,
}  # fmt: skip
VIEWS = {"picture": "crop", "words": "tokens", "sound": "window"}
THREE: dict[str, Any] = TWO | {
    "pairs": [["picture", "words"], ["sound", "words"], {"modalities": ["picture", "sound"], "weight": 0.5}],
    "views": VIEWS,
}
MIXED: dict[str, Any] = THREE | {
    "loss": "info_nce", "temperature": 0.1,
    "pairs": [["picture", "words"], {"modalities": ["sound", "words"], "loss": "predictive"}],
}  # fmt: skip
MLP = {"predictor": {"kind": "mlp", "hidden": 10, "layers": 3, "norm": "layer"}, "sigreg_weight": 0.1, "directions": 16}
TOGETHER = PREDICTION | {"predictor": {"kind": "identity"}}
ANCHORED = {"regularised": ["words", "sound"]}
SOME = {"picture": (5,), "words": (0, 2), "sound": (1, 4, 6)}
ZERO = 0.1 * 0.402048
"""What SIGReg costs for each sample of a modality whose embeddings are all zero, and so predicted without an error."""
CASES = {
    "clip, predictive": Case(json.dumps(TWO), Reduction.STATISTIC, {"picture-words": 2 * SIZE * ZERO}),
    "clip, predictive, absent": Case(
        json.dumps(THREE),
        Reduction.STATISTIC,
        {"picture-words": (7 + 6) * ZERO, "sound-words": (5 + 6) * ZERO, "picture-sound": (7 + 5) * ZERO / 2},
        SOME,
    ),
    "clip, predictive, not all regularised": Case(
        json.dumps(THREE | {"prediction": PREDICTION | ANCHORED}),
        Reduction.STATISTIC,
        {"picture-words": SIZE * ZERO, "sound-words": 2 * SIZE * ZERO, "picture-sound": SIZE * ZERO / 2},
    ),
    "clip, predictive without predictors, absent": Case(
        json.dumps(THREE | {"prediction": TOGETHER | ANCHORED}),
        Reduction.STATISTIC,
        {"picture-words": 6 * ZERO, "sound-words": (5 + 6) * ZERO, "picture-sound": 5 * ZERO / 2},
        SOME,
    ),
    "clip, predictive and info_nce": Case(
        json.dumps(MIXED), Reduction.STATISTIC, {"picture-words": math.log(SIZE), "sound-words": 2 * SIZE * ZERO}
    ),
    "clip, predictive and sigmoid, absent": Case(
        json.dumps(
            MIXED
            | {
                "loss": "predictive",
                "pairs": [["picture", "words"], {"modalities": ["sound", "words"], "loss": "sigmoid", "bias": -2.0}],
            }
        ),
        Reduction.STATISTIC,
        # 3 samples have sound and words
        {"picture-words": (7 + 6) * ZERO, "sound-words": math.log1p(math.exp(-8)) + 2 * math.log1p(math.exp(8))},
        SOME,
    ),
}


def build(settings: dict[str, Any], optional: tuple[str, ...] = ()) -> Learner:
    torch.manual_seed(0)
    encoders = toys.encoders()
    objective = ClipConfig.model_validate_json(json.dumps(settings)).build(encoders, Plan.unknown())
    needed = {modality: encoders[modality] for modality in objective.needs()}
    return Learner(needed, objective, optional=optional).double()


def batch(absent: dict[str, tuple[int, ...]] | None = None) -> Batch:
    whole = toys.batch(SIZE)
    present = {
        modality: torch.tensor([row not in rows for row in range(SIZE)]) for modality, rows in (absent or {}).items()
    }
    return Batch(whole.views, whole.index, whole.keys, present)


def embeddings(model: Learner, whole: Batch) -> dict[str, Tensor]:
    """Outputs of the projections, of all rows."""
    return {
        m: model.objective.get_submodule(f"projections.{m}")(model.encoders[m](whole[m][f"{VIEWS[m]}0"]).pooled)
        for m in model.objective.needs()
    }


def predict(model: Learner, source: str, target: str, z: Tensor) -> Tensor:
    if not model.objective.get_submodule("prediction.predictors")._modules:
        return z
    predicted: Tensor = model.objective.get_submodule(f"prediction.predictors.{source}-{target}")(z)
    return predicted


def authors_sigreg(x: Tensor, directions: Tensor) -> Tensor:
    """As the authors' module computes it, of [N, E] and [A, E]."""
    t = torch.linspace(0, 3, 17, dtype=x.dtype)
    phi = (-t.square() / 2).exp()
    weights = torch.full((17,), 2 * 3 / 16, dtype=x.dtype)
    weights[[0, -1]] = 3 / 16
    angles = (x @ directions.T).unsqueeze(-1) * t
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return ((error @ (weights * phi)) * len(x)).mean()


def paper(
    model: Learner, absent: dict[str, tuple[int, ...]], first: str, second: str, step: int, regularised: list[str]
) -> Tensor:
    """The loss of one pair, sample by sample."""
    z = embeddings(model, batch())
    have = {m: [i for i in range(SIZE) if i not in absent.get(m, ())] for m in (first, second)}
    loss = torch.zeros((), dtype=torch.float64)
    for source, target in ((first, second), (second, first)):
        both = [i for i in have[first] if i in have[second]]
        for i in both:
            error = predict(model, source, target, z[source][i : i + 1])[0] - z[target][i].detach()
            loss = loss + error.square().mean() / (2 * len(both))
        random = torch.Generator().manual_seed(fold(0, "shared", f"sigreg/{source}", step))
        loss = loss + (source in regularised) * 0.1 * authors_sigreg(
            z[source][have[source]], random_directions(z[source], 16, random)
        )
    return loss


@pytest.mark.parametrize("absent", [{}, SOME], ids=["present", "absent"])
@pytest.mark.parametrize(
    "prediction", [MLP, MLP | ANCHORED, TOGETHER, TOGETHER | ANCHORED], ids=["mlp", "mlp, two", "none", "none, two"]
)
def test_loss_and_gradients_are_those_of_the_paper(
    absent: dict[str, tuple[int, ...]], prediction: dict[str, Any]
) -> None:
    model = build(THREE | {"prediction": prediction}, tuple(absent))
    out, _ = model(batch(absent), step=3)
    regularised = prediction.get("regularised", ["picture", "words", "sound"])
    expected = {
        "picture-words": paper(model, absent, "picture", "words", 3, regularised),
        "sound-words": paper(model, absent, "sound", "words", 3, regularised),
        "picture-sound": 0.5 * paper(model, absent, "picture", "sound", 3, regularised),
    }
    assert list(out.terms) == list(expected)
    trained = list(model.parameters())
    for name, value in expected.items():
        torch.testing.assert_close(out.terms[name], value)
    wanted = torch.autograd.grad(sum(expected.values()), trained)
    torch.testing.assert_close(torch.autograd.grad(sum(out.terms.values()), trained), wanted)


def test_a_pair_in_a_mixed_sum_costs_what_it_costs_alone() -> None:
    out = build(MIXED)(batch())[0]
    for name, alone in {
        "picture-words": MIXED | {"pairs": [["picture", "words"]], "views": TWO["views"], "prediction": None},
        "sound-words": TWO | {"pairs": [["sound", "words"]], "views": {"sound": "window", "words": "tokens"}},
    }.items():
        model, mixed = build(alone), build(MIXED)
        model.load_state_dict({key: value for key, value in mixed.state_dict().items() if key in model.state_dict()})
        torch.testing.assert_close(model(batch())[0].terms[name], out.terms[name])


def test_metrics_are_the_parts_of_the_loss_and_the_accuracy_of_predictions() -> None:
    model = build(TWO)
    out, _ = model(batch())
    z = embeddings(model, batch())
    unit = {
        "picture": torch.cat([F.normalize(predict(model, "picture", "words", z["picture"])), F.normalize(z["picture"])], 1),
        "words": torch.cat([F.normalize(z["words"]), F.normalize(predict(model, "words", "picture", z["words"]))], 1),
    }  # fmt: skip
    cosines, target = unit["picture"] @ unit["words"].T, torch.arange(SIZE)
    found = out.metrics
    assert found["picture-words/picture_to_words_accuracy"] == (cosines.argmax(1) == target).double().mean()
    assert found["picture-words/words_to_picture_accuracy"] == (cosines.argmax(0) == target).double().mean()
    parts = found["picture-words/prediction"] + 0.1 * (found["sigreg/picture"] + found["sigreg/words"])
    torch.testing.assert_close(parts, out.terms["picture-words"].detach())
    assert found["picture-words/chance_loss"].item() == pytest.approx(1 + 0.2 * 1.0525, rel=1e-4)
    assert found["picture-words/samples"] == SIZE
    assert build(THREE, tuple(SOME))(batch(SOME))[0].metrics["picture-sound/samples"] == 4


@pytest.mark.parametrize("regularised", [["picture", "words"], ["words"]])
@pytest.mark.parametrize("prediction", [PREDICTION, TOGETHER], ids=["predictors", "none"])
def test_normal_embeddings_of_which_nothing_is_predicted_cost_chance(
    prediction: dict[str, Any], regularised: list[str]
) -> None:
    """The cheapest embeddings that tell nothing: normal where they are regularised, else zero."""
    model = build(TWO | {"embedding": 32, "prediction": prediction | {"directions": 256, "regularised": regularised}})
    whole = toys.batch(1024)
    latents = model.objective.encode(whole, model.context())
    random = torch.Generator().manual_seed(1)
    for name in ("raw/picture", "raw/words"):
        normal = torch.randn(1024, 32, generator=random, dtype=torch.float64)
        latents[name] = normal * (name.removeprefix("raw/") in regularised)
    for parameter in model.objective.get_submodule("prediction").parameters():
        torch.nn.init.zeros_(parameter)
    out = model.criterion(latents, model.context())
    assert out.total.item() == pytest.approx(out.metrics["picture-words/chance_loss"].item(), rel=0.05)


@pytest.mark.parametrize("settings", [TWO, MIXED, THREE], ids=["two", "mixed", "three"])
def test_evaluators_compare_predictions_with_embeddings(settings: dict[str, Any]) -> None:
    """The cosine of two modalities is the mean over the spaces of all; a space that one of them does not know adds nothing."""
    model = build(settings)
    whole, z = batch(), embeddings(model, batch())
    seen = EmbeddingModel(dict(model.encoders.items()), dict(model.objective.heads()))
    names = list(z)
    into = {(m, m): z[m] for m in names}
    for pair in ClipConfig.model_validate_json(json.dumps(settings)).resolved():
        for a, b in ((pair.first, pair.second), (pair.second, pair.first)):
            into[a, b] = predict(model, a, b, z[a]) if pair.loss == "predictive" else z[a]
    known = {m: [other for other in names if (m, other) in into] for m in names}
    embedded = {m: seen.embed(m, whole[m][f"{VIEWS[m]}0"]).double() for m in names}
    for a in names:
        for b in names:
            shared = [space for space in names if space in known[a] and space in known[b]]
            cosines = sum(F.normalize(into[a, s]) @ F.normalize(into[b, s]).T for s in shared)
            expected = cosines / math.sqrt(len(known[a]) * len(known[b]))
            torch.testing.assert_close(embedded[a] @ embedded[b].T, expected, rtol=1e-5, atol=1e-5)
    apart = {"picture": ["picture", "words"], "sound": ["words", "sound"]}
    assert known == dict.fromkeys(names, names) | (apart if settings is MIXED else {})


def test_without_predictors_all_modalities_are_in_one_space() -> None:
    objective = build(THREE | {"prediction": TOGETHER}).objective
    assert dict(objective.heads()) == {m: objective.get_submodule(f"projections.{m}") for m in VIEWS}


def test_without_predictors_embeddings_move_to_their_mean() -> None:
    """The gradient of all pairs of a sample is that of the squared distance from the mean of its three embeddings."""
    model = build(
        THREE | {"pairs": [["picture", "words"], ["sound", "words"], ["picture", "sound"]], "prediction": TOGETHER}
    )
    latents = model.objective.encode(batch(), model.context())
    z = [latents[f"raw/{m}"].detach().requires_grad_() for m in VIEWS]
    given = latents | dict(zip((f"raw/{m}" for m in VIEWS), z, strict=True))
    out = model.criterion(given, model.context())
    error = out.total - 2 * 0.1 * sum(
        authors_sigreg(x, random_directions(x, 16, torch.Generator().manual_seed(fold(0, "shared", f"sigreg/{m}", 0))))
        for m, x in zip(VIEWS, z, strict=True)
    )
    mean = torch.stack(z).mean(0)
    distances = sum((x - mean).square().mean(1).sum() for x in z)
    wanted = torch.autograd.grad(3 / 2 / SIZE * distances, z)
    torch.testing.assert_close(torch.autograd.grad(error, z), wanted)


def test_there_is_no_temperature_where_nothing_is_contrasted() -> None:
    assert not [name for name, _ in build(THREE).objective.named_parameters() if "logit" in name]
    assert build(THREE).objective.logit_scales() == {}
    assert list(build(MIXED).objective.logit_scales()) == [("picture", "words")]
    assert build(MIXED).objective.monitored() == {"picture": "picture", "words": "raw/words", "sound": "raw/sound"}


def test_training_predicts_and_does_not_collapse() -> None:
    model, whole = build(TWO | {"prediction": MLP, "embedding": 8}), toys.batch(12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for step in range(60):
        out, _ = model(whole, step)
        out.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(out)
    first, last = history[0].metrics, history[-1].metrics
    assert last["sigreg/picture"] < 0.5 * first["sigreg/picture"]
    assert last["picture-words/picture_to_words_accuracy"] > 0.5 > first["picture-words/picture_to_words_accuracy"]
    assert history[-1].total < last["picture-words/chance_loss"]


@pytest.mark.parametrize("batch_size", [64, 4096])
def test_below_the_stated_weight_a_collapse_costs_less_than_predicting_nothing(batch_size: int) -> None:
    for share, collapsed_is_cheaper in ((0.9, True), (1.1, False)):
        weight = share * 1.3 / batch_size
        collapse, nothing = weight * 2 * sigreg_of_collapse(batch_size), 1 + weight * 2 * sigreg_of_normal()
        assert (collapse < nothing) == collapsed_is_cheaper


CONTRASTIVE = {
    "kind": "clip",
    "pairs": [["picture", "words"]],
    "views": TWO["views"],
    "embedding": 4,
    "temperature": 0.1,
}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (TWO | {"temperature": 0.1}, "temperature: got 0.1, and no pair has a contrastive loss"),
        (TWO | {"max_scale": 50}, "max_scale: got 50.0, and no pair has a contrastive loss"),
        (TWO | {"shared_temperature": True}, "shared_temperature: got True, and no pair"),
        (TWO | {"duplicates": "ignore"}, "duplicates: got 'ignore', and no pair"),
        (TWO | {"tiles": False}, "tiles: got False, and no pair"),
        (TWO | {"bias": -3.0}, "no pair has the sigmoid loss"),
        (TWO | {"prediction": None}, "prediction: got none, and a pair has loss: predictive; give"),
        (CONTRASTIVE | {"prediction": PREDICTION}, "prediction: got settings, and no pair has loss: predictive"),
        (MIXED | {"pairs": [["picture", "words"], {"modalities": ["sound", "words"], "loss": "predictive", "temperature": 0.2}]},
         "with a temperature, which the predictive loss does not have"),
        (MIXED | {"temperature": None}, "temperature: got none, wanted the initial value for contrastive losses"),
        (TWO | {"prediction": PREDICTION | {"predictor": {"kind": "mlp", "hidden": 4}}},
         "prediction.predictor: got norm: batch, wanted norm: layer or none"),
        (TWO | {"prediction": PREDICTION | {"sigreg_weight": 0}}, "greater than 0"),
        (TWO | {"prediction": PREDICTION | {"directions": 0}}, "greater than 0"),
        (TWO | {"prediction": PREDICTION | {"regularised": ["word"]}}, "regularised: got 'word', wanted modalities of predictive"),
        (MIXED | {"prediction": PREDICTION | {"regularised": ["picture"]}}, "regularised: got 'picture', wanted modalities of"),
        (THREE | {"prediction": PREDICTION | {"regularised": ["words"]}},
         r"regularised: got \['words'\], and neither modality of the predictive pair picture-sound"),
        (TWO | {"prediction": PREDICTION | {"regularised": []}}, "at least 1 item"),
        (TWO | {"prediction": {"predictor": {"kind": "linear"}}}, r"sigreg_weight\n.*Field required"),
        (TWO | {"prediction": {"sigreg_weight": 0.1}}, r"predictor\n.*Field required"),
    ],
)  # fmt: skip
def test_config_refuses(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ClipConfig.model_validate_json(json.dumps(settings))


def test_config_round_trips() -> None:
    for settings in (TWO, MIXED, THREE | {"prediction": TOGETHER | ANCHORED}):
        made = ClipConfig.model_validate_json(json.dumps(settings))
        assert ClipConfig.model_validate_json(made.model_dump_json()) == made
