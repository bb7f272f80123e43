"""Hard negatives of CLIP: which pairs have them, samples without one, metrics, settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.objectives.clip import ClipConfig
from mmssl.objectives.parts.presence import content_hash
from tests.contracts import toys

TWO: dict[str, Any] = {
    "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 8, "temperature": 0.07,
    "negatives": {"words": ["false"]},
}  # fmt: skip
PREDICTIVE = {
    "loss": "predictive",
    "temperature": None,
    "prediction": {"predictor": {"kind": "linear"}, "sigreg_weight": 0.1},
}
THREE = {"pairs": [["picture", "words"], ["sound", "words"]], "views": {**TWO["views"], "sound": "window"}}


def learner(**changes: Any) -> Learner:
    torch.manual_seed(0)
    encoders = toys.encoders()
    objective = ClipConfig.model_validate_json(json.dumps(TWO | changes)).build(encoders, Plan.unknown())
    return Learner({modality: encoders[modality] for modality in objective.needs()}, objective)


def batch(size: int, same: tuple[int, ...] = ()) -> Batch:
    """False captions for all samples but those in `same`."""
    made = toys.batch(size)
    true = made["words"]["tokens0"]
    false = (true + 1) % 30
    false[list(same)] = true[list(same)]
    return replace(made, views={**made.views, "words": {"tokens0": true, "false0": false}})


def test_false_captions_are_encoded_with_the_true_ones_and_raise_the_loss() -> None:
    model = learner()
    assert model.objective.needs() == {"picture": {"crop": 1}, "words": {"tokens": 1, "false": 1}}
    rows: list[int] = []
    model.encoders["words"].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    out, latents = model(batch(6))
    assert out is not None
    assert rows == [12]
    plain = learner(negatives={})(batch(6))[0]
    assert plain is not None
    assert out.total > plain.total + 0.05
    assert out.metrics["picture-words/chance_loss"].item() == pytest.approx((math.log(12) + math.log(6)) / 2)
    scores = [(latents["picture"] * latents[name]).sum(1) for name in ("words", "hard/words/false")]
    expected = (scores[0] > scores[1]).float().mean().item()
    assert out.metrics["picture-words/picture_to_words_hard_accuracy"].item() == pytest.approx(expected)


def test_samples_without_a_false_caption_add_no_candidate() -> None:
    everyone = tuple(range(6))
    none, plain = learner()(batch(6, everyone))[0], learner(negatives={})(batch(6))[0]
    assert none is not None
    assert plain is not None
    torch.testing.assert_close(none.total, plain.total)
    torch.testing.assert_close(none.metrics["picture-words/chance_loss"], plain.metrics["picture-words/chance_loss"])
    assert none.metrics["picture-words/picture_to_words_hard_accuracy"] == 0
    some = learner()(batch(6, (0, 1)))[0]
    assert some is not None
    assert some.total > plain.total


@pytest.mark.parametrize("tiles", [False, 4])
def test_false_captions_are_further_negative_pairs_of_the_sigmoid_loss(tiles: bool | int) -> None:
    changes: dict[str, Any] = {"loss": "sigmoid", "temperature": 0.1, "bias": -3.0, "tiles": tiles}
    out, latents = learner(**changes)(batch(6, (2,)))
    plain = learner(**changes, negatives={})(batch(6))[0]
    assert out is not None
    assert plain is not None
    logits = 10 * latents["picture"] @ latents["hard/words/false"].T - 3
    told = [[content_hash(x[None]) for x in batch(6, (2,))["words"][name]] for name in ("tokens0", "false0")]
    further = sum(F.softplus(logits[i, j]) for i in range(6) for j in range(6) if j != 2 and told[1][j] != told[0][i])
    torch.testing.assert_close(out.total, plain.total + further / 6)
    assert out.metrics["picture-words/chance_loss"] > plain.metrics["picture-words/chance_loss"]


def test_chance_counts_false_captions_as_questions() -> None:
    """A guess of 1 / c for each of c pairs, of which one is true, costs c times its entropy."""
    out = learner(loss="sigmoid", temperature=0.1)(batch(6))[0]
    assert out is not None
    expected = -(math.log(1 / 12) + 11 * math.log(11 / 12))
    assert out.metrics["picture-words/chance_loss"].item() == pytest.approx(expected, rel=1e-6)


def test_a_pair_may_have_none_or_its_own() -> None:
    pairs = [["picture", "words"], {"modalities": ["sound", "words"], "negatives": {}}]
    model = learner(**THREE | {"pairs": pairs})
    out, plain = model(batch(6))[0], learner(**THREE | {"negatives": {}})(batch(6))[0]
    assert out is not None
    assert plain is not None
    torch.testing.assert_close(out.terms["sound-words"], plain.terms["sound-words"])
    assert out.terms["picture-words"] > plain.terms["picture-words"]
    own = [{"modalities": ["picture", "words"], "negatives": {"picture": ["small"]}}, ["sound", "words"]]
    assert learner(**THREE | {"pairs": own}).objective.needs() == {
        "picture": {"crop": 1, "small": 1},
        "words": {"tokens": 1, "false": 1},
        "sound": {"window": 1},
    }


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"negatives": {"sound": ["false"]}}, "negatives: got some for 'sound'"),
        ({"negatives": {"words": ["tokens"]}}, "which has the positives"),
        ({"negatives": {"words": ["false", "false"]}}, "each once"),
        (PREDICTIVE, "wanted modalities of pairs with loss: info_nce or sigmoid"),
        (
            PREDICTIVE | {"negatives": {}, "pairs": [{"modalities": ["picture", "words"], "negatives": {"words": ["x"]}}]},
            "wanted loss: info_nce or sigmoid",
        ),
    ],
)  # fmt: skip
def test_settings_without_an_effect_are_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        learner(**changes)
