"""Masked prediction: BERT's loss by transformers, 80/10/10 of the words, codes and histograms as targets, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.masked_prediction import MaskedPredictionConfig, MaskedPredictionObjective
from mmssl.objectives.parts.word_masks import corrupt_words, mask_words, real_ids
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "masked_prediction", "modality": "picture", "view": "crop", "mask": "mask",
    "targets": {
        "kind": "codes", "rows": {"kind": "patches", "values": 12, "normalise": True},
        "quantizer": {"kind": "random_projection", "codes": 5, "embedding": 4},
    },
    "predictor": {"kind": "linear"},
}  # fmt: skip
KMEANS = CONFIG | {
    "targets": CONFIG["targets"] | {"quantizer": {"kind": "kmeans", "codes": 5, "rows": 60}},
    "predictor": {"kind": "cosine", "embedding": 6},
    "mask": "uneven",
    "mean": "tokens",
}
LEFT_OUT = CONFIG | {"places": {"kind": "transformer", "width": 8, "depth": 1, "heads": 2}}
CONVOLVED = CONFIG | {"places": {"kind": "conv", "width": 8, "depth": 1, "groups": 2}}
HOG = CONFIG | {"targets": {"kind": "hog", "values": 27, "cell": 2}}
BERT = CONFIG | {
    "modality": "sentence", "view": "tokens", "mask": "order", "targets": {"kind": "words", "ratio": 0.4},
    "predictor": {"kind": "bert"}, "mean": "tokens",
}  # fmt: skip
ALIKE = {"masked": 8**-0.5}  # the contract makes a unit vector of the errors of 8 samples
PLAN = Plan(total_steps=50, batch_size=8, samples=8)
CASES = {
    "masked_prediction": Case(json.dumps(CONFIG), Reduction.LOCAL, ALIKE),
    "masked_prediction, fitted codes": Case(json.dumps(KMEANS), Reduction.STATISTIC, ALIKE, plan=PLAN),
    "masked_prediction, fitted codes, absent": Case(json.dumps(KMEANS), Reduction.STATISTIC, ALIKE, FIVE, plan=PLAN),
    "masked_prediction, left out": Case(json.dumps(LEFT_OUT), Reduction.LOCAL, ALIKE),
    "masked_prediction, left out, absent": Case(json.dumps(LEFT_OUT), Reduction.LOCAL, ALIKE, FIVE),
    "masked_prediction, left out, convolved": Case(json.dumps(CONVOLVED), Reduction.LOCAL, ALIKE),
    "masked_prediction, histograms": Case(json.dumps(HOG), Reduction.LOCAL, ALIKE),
    "masked_prediction, words": Case(json.dumps(BERT), Reduction.STATISTIC, ALIKE),
}
WIDTH, SIZE, ROWS = 6, 5, 3000


def build(encoder: Encoder | None = None, **config: Any) -> tuple[Learner, MaskedPredictionObjective]:
    torch.manual_seed(0)
    settings = CONFIG | config
    encoders = toys.encoders() | ({settings["modality"]: encoder} if encoder is not None else {})
    objective = MaskedPredictionConfig.model_validate_json(json.dumps(settings)).build(encoders, Plan.unknown())
    return Learner({settings["modality"]: encoders[settings["modality"]]}, objective), objective


def test_words_cost_what_transformers_says() -> None:
    """Labels of BertForMaskedLM: the id where a word is predicted, -100 elsewhere; its mean is over all of them."""
    transformers = pytest.importorskip("transformers")
    learner, objective = build(**BERT)
    learner.double().eval()
    batch = Batch({"sentence": toys.texts(1, 5, 8, 3)}, torch.arange(4))
    ids, order = (batch["sentence"][name] for name in ("tokens0", "order0"))
    chosen = mask_words(order, real_ids(ids), 0.4)
    changed, hidden = corrupt_words(ids, order, chosen, 0.1, 0.1)
    tokens = learner.encoders["sentence"](changed, replace=(hidden, objective.mask_token)).tokens
    settings = transformers.BertConfig(
        vocab_size=toys.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        layer_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    head = transformers.models.bert.modeling_bert.BertLMPredictionHead(settings).double()
    ours = [part for part in objective.predictor if isinstance(part, torch.nn.Linear | torch.nn.LayerNorm)]
    for mine, theirs in zip(ours, (head.transform.dense, head.transform.LayerNorm, head.decoder), strict=True):
        theirs.weight.data.copy_(mine.weight), theirs.bias.data.copy_(mine.bias)
    scores = head(tokens)
    expected = torch.nn.CrossEntropyLoss()(scores.flatten(0, 1), ids.masked_fill(~chosen, -100).flatten())
    out, latents = learner(batch)
    torch.testing.assert_close(out.terms["masked"], expected, rtol=1e-12, atol=0)
    right = (scores.argmax(-1) == ids)[chosen]
    assert out.metrics["accuracy"].item() == pytest.approx(right.double().mean().item())
    assert latents["count"].tolist() == [1, 2, 3, 1]  # round(0.4 n), at least one


def test_four_of_five_words_are_hidden_and_a_tenth_is_another_word() -> None:
    texts = toys.texts(*[8] * ROWS)
    ids, order = texts["tokens0"], texts["order0"]
    chosen = real_ids(ids) & (ids < 28)
    changed, hidden = corrupt_words(ids, order, chosen, 0.1, 0.1)
    assert not (hidden & ~chosen).any()
    assert torch.equal(changed[~chosen | hidden], ids[~chosen | hidden])
    assert hidden[chosen].float().mean().item() == pytest.approx(0.8, abs=0.01)
    random = changed[chosen & ~hidden & (changed != ids)]
    assert len(random) / int(chosen.sum()) == pytest.approx(0.1 * 27 / 28, abs=0.01)
    shares = torch.bincount(random, minlength=30) / len(random)
    assert shares[28:].tolist() == [0, 0], "neither start nor end"
    torch.testing.assert_close(shares[:28], torch.full((28,), 1 / 28), atol=0.012, rtol=0)
    assert real_ids(changed).equal(real_ids(ids))


def test_what_becomes_of_a_word_depends_on_its_own_text_alone() -> None:
    texts = toys.texts(8, 8, 3, 5)
    ids, order = texts["tokens0"], texts["order0"]
    chosen = real_ids(ids)
    whole = corrupt_words(ids, order, chosen, 0.4, 0.1)
    for row in range(4):
        alone = corrupt_words(ids[row : row + 1], order[row : row + 1], chosen[row : row + 1], 0.4, 0.1)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, whole, strict=True))


def test_what_is_left_out_is_predicted_at_its_places() -> None:
    """Picture by picture: features of the visible patches, a pass of the label predictor, cross entropy of the codes (BEATs)."""
    learner, objective = build(**LEFT_OUT)
    learner.double()
    batch, places = toys.batch(SIZE), objective.places
    assert places is not None
    assert objective.mask_token is None
    costs = []
    for row, mask in enumerate(batch["picture"]["mask0"]):
        one, seen, hidden = batch["picture"]["crop0"][row : row + 1], (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        tokens = places.embed(learner.encoders["picture"](one, keep=seen[None]).tokens) + places.positions[seen]  # type: ignore[union-attr,operator]
        asked = (places.mask_token + places.positions[hidden])[None]  # type: ignore[operator,index]
        found = places.predict(places.norm(places.blocks(torch.cat([tokens, asked], 1))[0, len(seen) :]))  # type: ignore[operator]
        codes = objective.targets(one, learner.encoders["picture"])[0, mask]
        costs.append(torch.nn.functional.cross_entropy(objective.predictor(found), codes))
    torch.testing.assert_close(learner(batch)[0].terms["masked"], torch.stack(costs).mean(), rtol=1e-10, atol=0)


def test_masks_of_different_counts_and_texts_are_not_left_out() -> None:
    learner, objective = build(**LEFT_OUT | {"mask": "uneven"})
    with pytest.raises(ValueError, match=r"got masks of kind 'uneven' of .* wanted equal numbers in all samples"):
        objective.encode(toys.batch(SIZE), learner.context())
    with pytest.raises(ValueError, match=r"lacks \['mask_drop'\]; no encoder of texts drops tokens"):
        build(**BERT | {"places": LEFT_OUT["places"]})


@pytest.mark.parametrize("config", [HOG, HOG | {"places": LEFT_OUT["places"]}])
def test_the_encoder_does_not_see_hidden_patches(config: dict[str, Any]) -> None:
    learner, _ = build(**config)
    batch = toys.batch(3)
    hidden = batch["picture"]["mask0"].view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    crop = batch["picture"]["crop0"]
    seen: list[Tensor] = []
    learner.encoders["picture"].register_forward_hook(lambda *given: seen.append(given[2].tokens))
    learner(batch)
    learner(replace(batch, views={"picture": {**batch["picture"], "crop0": torch.where(hidden, 255 - crop, crop)}}))
    assert torch.equal(*seen)


def test_codes_are_those_of_the_very_view_and_blind_guesses_cost_their_entropy() -> None:
    learner, objective = build()
    batch = toys.batch(SIZE)
    out, latents = learner(batch)
    classes = latents["classes"]
    codes = objective.targets(batch["picture"]["crop0"], learner.encoders["picture"])
    mask = batch["picture"]["mask0"]
    assert torch.equal(classes, codes.masked_fill(~mask, -1))
    shares = torch.bincount(codes[mask], minlength=5) / mask.sum()
    assert out.metrics["chance_loss"].item() == pytest.approx(torch.special.entr(shares).sum().item(), rel=1e-6)
    assert out.metrics["majority"].item() == pytest.approx(shares.max().item())


def test_prediction_of_zeros_has_the_zero_loss() -> None:
    learner, objective = build(**HOG)
    for parameter in objective.predictor.parameters():
        parameter.data.zero_()
    out, _ = learner(toys.batch(SIZE))
    assert out.total.item() == pytest.approx(out.metrics["zero_loss"].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BERT | {"modality": "picture", "view": "crop"}, "targets: got words for 'picture', wanted words for texts"),
        (BERT | {"targets": HOG["targets"]}, "targets: got hog for 'sentence', wanted words for texts"),
        (HOG | {"modality": "words"}, "targets: got hog for 'words'"),
    ],
)
def test_targets_of_another_kind_of_input_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**config)


def test_sizes_that_do_not_fit_are_refused_before_training() -> None:
    for config, message in (
        (HOG | {"targets": HOG["targets"] | {"values": 9}}, "values: got 9, wanted 27, the numbers of a token"),
        (CONFIG | {"mask": "order"}, r"got masks torch.int64 \[5, 16\] .* wanted bool \[B, 16\]"),
    ):
        learner, objective = build(**config)
        with pytest.raises(ValueError, match=message):
            objective.check_views(toys.batch(SIZE), learner.context())
    with pytest.raises(ValidationError, match="wanted a sum below 1: no word is hidden"):
        build(**BERT | {"targets": {"kind": "words", "random": 0.5, "kept": 0.5}})


def test_a_causal_tower_is_refused() -> None:
    shape = {"vocab_size": 30, "context_length": 10, "width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match=r"lacks .*bidirectional.*set causal: false"):
        build(TextTransformerConfig(**shape).build(), **BERT)  # type: ignore[arg-type]


FROZEN = {"kind": "vit", "size": 8, "patch_size": 2, "width": 16, "depth": 3, "heads": 2}


def frozen(folder: Path, **changes: Any) -> tuple[dict[str, Any], Encoder]:
    """Settings of a frozen encoder with weights, and the same encoder."""
    torch.manual_seed(7)
    encoder = VisionTransformerConfig.model_validate_json(json.dumps(FROZEN | changes)).build().eval()
    save_file(encoder.state_dict(), folder / "frozen.safetensors")
    return FROZEN | changes | {"weights": str(folder / "frozen.safetensors")}, encoder


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_features_of_a_frozen_encoder_are_targets_by_cosine(layer: int | None, tmp_path: Path) -> None:
    settings, network = frozen(tmp_path)
    targets = {"kind": "features", "encoder": settings, "layer": layer}
    learner, objective = build(targets=targets)
    learner.train()
    assert not any(
        module.training for module in objective.targets.frozen.modules() if module is not objective.targets.frozen
    )  # type: ignore[union-attr,attr-defined]
    whole, ctx = toys.batch(8), learner.context()
    latents = objective.encode(whole, ctx)
    out = objective.criterion(latents, ctx)
    out.terms["masked"].backward()  # type: ignore[no-untyped-call]
    assert {p.requires_grad for p in objective.targets.parameters()} == {False}
    x, mask = whole["picture"]["crop0"], whole["picture"]["mask0"]
    with torch.no_grad():
        wanted = network(x).tokens if layer is None else network(x, hidden=3 - layer + 1).hidden[0]
        seen = ctx.encoders["picture"](x, replace=(mask, objective.mask_token)).tokens
        errors = 1 - torch.nn.functional.cosine_similarity(objective.predictor(seen), wanted, dim=-1)
        expected = torch.stack([errors[i][mask[i]].mean() for i in range(8)]).mean()
    torch.testing.assert_close(out.terms["masked"], expected)
    assert out.metrics["zero_loss"] == 1


def test_codes_of_a_layer_are_fitted_and_kept_in_checkpoints(tmp_path: Path) -> None:
    settings, network = frozen(tmp_path)
    targets = {
        "kind": "codes", "rows": {"kind": "features", "encoder": settings, "layer": 2},
        "quantizer": {"kind": "kmeans", "codes": 5, "rows": 128},
    }  # fmt: skip
    learner, objective = build(targets=targets)
    whole, ctx = toys.batch(8), learner.context()
    objective.samples = 8
    objective.refresh([whole], ctx)
    with torch.no_grad():
        rows = network(whole["picture"]["crop0"], hidden=2).hidden[0]
        points = objective.targets.centroids.points  # type: ignore[union-attr]
        nearest = (rows[:, :, None] - points).square().sum(-1).argmin(-1)
    assert objective.targets(whole["picture"]["crop0"], ctx.encoders["picture"]).equal(nearest)
    assert len(nearest.unique()) == 5
    again, other = build(targets=targets)
    again.load_state_dict(learner.state_dict())
    assert other.targets(whole["picture"]["crop0"], ctx.encoders["picture"]).equal(nearest)


@pytest.mark.parametrize(
    ("changes", "layer", "message"),
    [
        ({"weights": None}, None, "vit has random weights, wanted trained ones: set `weights`"),
        ({"patch_size": 4}, None, r"got the token grid \(2, 2\), wanted \(4, 4\), that of the encoder that is trained"),
        ({}, 4, "got layer 4, wanted 1 to 3, its depth"),
    ],
)
def test_frozen_encoders_that_do_not_fit(
    changes: dict[str, Any], layer: int | None, message: str, tmp_path: Path
) -> None:
    settings, _ = frozen(tmp_path, **{key: value for key, value in changes.items() if key != "weights"})
    settings |= {key: value for key, value in changes.items() if key == "weights"}
    with pytest.raises(ValueError, match=message):
        build(targets={"kind": "features", "encoder": settings, "layer": layer})
