"""CLIP: configs, pairs that share modalities, heads of evaluators, metrics."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.objectives.clip import ClipConfig, ClipObjective
from mmssl.objectives.parts import contrast
from tests.contracts import toys

TWO: dict[str, Any] = {
    "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 8, "temperature": 0.07,
}  # fmt: skip
THREE: dict[str, Any] = TWO | {
    "pairs": [["picture", "words"], ["sound", "words"], ["sound", "picture"]],
    "views": {"picture": "crop", "words": "tokens", "sound": "window"},
}


def config(**changes: Any) -> ClipConfig:
    return ClipConfig.model_validate_json(json.dumps(TWO | changes))


def learner(**changes: Any) -> Learner:
    torch.manual_seed(0)
    encoders = toys.encoders()
    objective = config(**changes).build(encoders, Plan.unknown())
    return Learner({modality: encoders[modality] for modality in objective.needs()}, objective)


def test_parameters_are_named_by_pair_and_start_at_the_temperature() -> None:
    objective = learner(**THREE).objective
    scales = {name: p for name, p in objective.named_parameters() if "logit_scale" in name}
    assert set(scales) == {"logit_scale.picture-words", "logit_scale.sound-words", "logit_scale.sound-picture"}
    for parameter in scales.values():
        assert parameter.shape == ()
        assert parameter.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    assert sum(p.numel() for p in objective.parameters()) == 8 * (16 + 12 + 16) + 3


def test_a_modality_of_several_pairs_is_encoded_once() -> None:
    model = learner(**THREE)
    assert model.objective.needs() == {"picture": {"crop": 1}, "words": {"tokens": 1}, "sound": {"window": 1}}
    calls = []
    for modality, encoder in model.encoders.items():
        encoder.register_forward_hook(lambda *_, modality=modality: calls.append(modality))
    _, latents = model(toys.batch(4))
    assert sorted(calls) == ["picture", "sound", "words"]
    modalities = ["picture", "sound", "words"]
    facts = ["sample/index", "content/words", *(f"present/{m}" for m in modalities)]
    assert sorted(latents) == sorted([*modalities, *facts])
    for modality in modalities:
        torch.testing.assert_close(latents[modality].norm(dim=1), torch.ones(4))
        assert latents[f"present/{modality}"].all()


def test_embeddings_are_normalised_in_float32_under_autocast() -> None:
    """In bfloat16 their norms would be off by up to 0.004, which is 0.4 of a logit at scale 100."""
    model = learner(**THREE)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        latents = model(toys.batch(16))[1]
        embedding = EmbeddingModel(dict(model.encoders.items()), model.objective.heads())
        evaluated = {m: embedding.embed(m, toys.batch(16)[m][f"{view}0"]) for m, view in THREE["views"].items()}
    for rows in (*(latents[m] for m in THREE["views"]), *evaluated.values()):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(16), rtol=0, atol=1e-6)


def test_terms_are_those_of_separate_pairs_times_their_weights() -> None:
    pairs = [["picture", "words"], {"modalities": ["sound", "words"], "weight": 0.25}, ["sound", "picture"]]
    together = learner(**THREE | {"pairs": pairs})
    out = together(toys.batch(6))[0]
    expected = {}
    for pair in THREE["pairs"]:
        alone = learner(**THREE)  # same seed, same weights; keep one pair
        assert isinstance(alone.objective, ClipObjective)
        alone.objective.pairs = tuple(p for p in alone.objective.pairs if p.name == "-".join(pair))
        expected["-".join(pair)] = alone(toys.batch(6))[0].total
    expected["sound-words"] *= 0.25
    assert out.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(out.terms[name], value)
    torch.testing.assert_close(out.total, torch.stack(list(expected.values())).sum())
    assert out.metrics["sound-words/chance_loss"] == out.metrics["picture-words/chance_loss"]


def test_metrics_say_scale_accuracy_and_chance() -> None:
    model = learner()
    batch = toys.batch(6)
    out, latents = model(batch)
    similarity = latents["picture"] @ latents["words"].T
    target = torch.arange(6)
    assert {name: pytest.approx(float(x), rel=1e-6) for name, x in out.metrics.items()} == {
        "picture-words/scale": 1 / 0.07,
        "picture-words/picture_to_words_accuracy": float((similarity.argmax(1) == target).float().mean()),
        "picture-words/words_to_picture_accuracy": float((similarity.argmax(0) == target).float().mean()),
        "picture-words/chance_loss": math.log(6),
        "picture-words/samples": 6,
        "picture-words/scale_limit": 100,
        "picture-words/duplicates": 0,
        "picture-words/floor_loss": 0,
    }


def count_matrices(model: Learner, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int]:
    """The loss of one batch, and how often the plain loss made it."""
    calls = []
    plain = contrast.info_nce
    monkeypatch.setattr(contrast, "info_nce", lambda *a, **options: calls.append(a) or plain(*a, **options))
    with torch.no_grad():
        loss = float(model(toys.batch(6))[0].total)
    monkeypatch.setattr(contrast, "info_nce", plain)
    return loss, len(calls)


def test_tiles_are_for_large_batches_and_by_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, plain = count_matrices(learner(), monkeypatch)
    assert plain == 1
    for tiles, matrices in ((True, 0), (1, 0), (4, 0), (False, 1), (None, 1)):
        assert count_matrices(learner(tiles=tiles), monkeypatch) == (pytest.approx(expected, rel=1e-6), matrices)
    for largest, matrices in ((6, 1), (5, 0)):
        monkeypatch.setattr(contrast, "WHOLE_UP_TO", {"cpu": largest})
        assert count_matrices(learner(), monkeypatch) == (pytest.approx(expected, rel=1e-6), matrices)
    assert count_matrices(learner(tiles=False), monkeypatch)[1] == 1


def test_evaluators_get_the_trained_heads() -> None:
    model = learner()
    batch = toys.batch(4)
    with torch.no_grad():
        _, latents = model(batch)
        seen = EmbeddingModel(dict(model.encoders.items()), dict(model.objective.heads()))
        for modality, view in (("picture", "crop0"), ("words", "tokens0")):
            assert torch.equal(seen.embed(modality, batch[modality][view]), latents[modality])
    raw = model.objective.heads()["picture"](torch.randn(4, 16))
    assert (raw.norm(dim=1) - 1).abs().max() > 0.05  # not normalised
    owned = {id(p) for p in model.parameters()}
    assert all(id(p) in owned for p in seen.parameters())


def test_other_heads() -> None:
    model = learner(
        embedding=16, heads={"picture": {"kind": "identity"}, "words": {"kind": "mlp", "hidden": 5, "norm": "none"}}
    )
    heads = model.objective.heads()
    assert isinstance(heads["picture"], nn.Identity)
    assert [p.shape[0] for p in heads["words"].parameters()] == [5, 5, 16, 16]
    assert model(toys.batch(4))[1]["words"].shape == (4, 16)
    with pytest.raises(ValueError, match=r"'identity' got an encoder of width 12 for an embedding of 16"):
        config(embedding=16, heads={"words": {"kind": "identity"}}).build(toys.encoders(), Plan.unknown())


def test_a_missing_encoder_is_named_at_build() -> None:
    encoders = toys.encoders()
    with pytest.raises(ValueError, match=r"needs an encoder for 'word', .*did you mean 'words'\?"):
        config(pairs=[["picture", "word"]], views={"picture": "crop", "word": "tokens"}).build(encoders, Plan.unknown())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pairs": []}, "at least 1 item"),
        ({"pairs": [["picture"]]}, "Field required"),
        ({"pairs": [["picture", "pic.ture"]]}, "match pattern"),
        ({"pairs": [["a-b", "c"]], "views": {"a-b": "x", "c": "y"}}, "match pattern"),
        ({"pairs": [["picture", "picture"]], "views": {"picture": "crop"}}, "wanted two different modalities"),
        ({"pairs": [["picture", "words"], ["words", "picture"]]}, "a pair includes both directions"),
        ({"views": {"picture": "crop"}}, r"wanted one for each modality of the pairs: \['picture', 'words'\]"),
        ({"views": {"picture": "crop", "words": "tokens", "sound": "window"}}, "wanted one for each modality"),
        ({"pairs": [{"modalities": ["picture", "words"], "weight": 0.0}]}, "greater than 0"),
        ({"pairs": [{"modalities": ["picture", "words"], "wait": 1.0}]}, "Extra inputs"),
        ({"pairs": [{"modalities": ["picture", "words"], "bias": -1.0}]}, "set loss: sigmoid for this pair"),
        (
            {"pairs": [{"modalities": ["picture", "words"], "temperature": 0.009}]},
            "wanted at least 1 / max_scale = 0.01",
        ),
        (
            {"pairs": [{"modalities": ["picture", "words"], "temperature": 0.1}], "shared_temperature": True},
            "wanted one of them",
        ),
        ({"bias": -10.0}, "no pair has the sigmoid loss"),
        ({"loss": "siglip"}, "'info_nce', 'sigmoid' or 'predictive'"),
        ({"duplicates": "positives"}, "'negatives' or 'ignore'"),
        ({"heads": {"sound": {"kind": "linear"}}}, "wanted modalities of the pairs"),
        ({"heads": {"words": {"kind": "mlp", "hidden": 4}}}, "evaluators embed each sample alone"),
        ({"temperature": 0.009}, "wanted at least 1 / max_scale = 0.01"),
        ({"temperature": 1.5}, "less than or equal to 1"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"embedding": 0}, "greater than 0"),
        ({"tiles": 0}, "greater than or equal to 1"),
        ({"tiles": 2.5}, "valid integer"),
        ({"logit_scale": 4.6}, "Extra inputs"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        config(**changes)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("pairs", r"pairs\n.*Field required"),
        ("views", r"views\n.*Field required"),
        ("embedding", r"embedding\n.*Field required"),
        ("temperature", "temperature: got none, wanted the initial value"),
    ],
)
def test_config_has_no_default_for_what_must_be_stated(field: str, complaint: str) -> None:
    stated = {name: value for name, value in TWO.items() if name != field}
    with pytest.raises(ValidationError, match=complaint):
        ClipConfig.model_validate_json(json.dumps(stated))


def test_config_round_trips() -> None:
    pair = {"modalities": ["sound", "words"], "weight": 2.0, "loss": "sigmoid", "bias": -5.0}
    made = config(
        **THREE | {"pairs": [["picture", "words"], pair]},
        heads={"words": {"kind": "mlp", "hidden": 4, "norm": "layer"}},
    )
    assert ClipConfig.model_validate_json(made.model_dump_json()) == made
    written = json.loads(made.model_dump_json())["pairs"]
    assert written == [
        ["picture", "words"],
        pair | {"temperature": None, "negatives": None},
    ]  # a plain pair stays plain


def test_a_frozen_encoder_and_identity_head_need_no_gradient() -> None:
    """A locked tower: everything else still learns."""
    model = learner(embedding=16, heads={"picture": {"kind": "identity"}})
    model.encoders["picture"].requires_grad_(False)
    model(toys.batch(4))[0].total.backward()
    grads: dict[str, Tensor | None] = {name: p.grad for name, p in model.named_parameters()}
    assert {name.split(".")[1] for name, g in grads.items() if g is None} == {"picture"}
    assert sum(g is not None for g in grads.values()) == 5
