"""wav2vec 2.0: transformers' quantizer and loss, noise by sample, targets from before the mask, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.objectives.parts.gumbel import gumbel_noise
from mmssl.objectives.wav2vec2 import Wav2Vec2Config, Wav2Vec2Objective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case

CONFIG: dict[str, Any] = {
    "kind": "wav2vec2", "modality": "picture", "view": "crop", "mask": "mask", "groups": 2, "codes": 4, "embedding": 6,
    "gumbel_temperature": 2.0, "diversity": 5.0, "penalty": 0.5,
}  # fmt: skip
USED = math.exp(
    -4 / 12 * math.log(1 / 12 + 1e-7)
)  # of a group: the contract makes sums of 1/2 for 6 frames of each sample
ALIKE = {"contrast": 8**-0.5, "penalty": 0.5 * 8**-0.5, "diversity": 5 * (1 - 2 * USED / 8)}
CASES = {
    "wav2vec2": Case(json.dumps(CONFIG), Reduction.STATISTIC, ALIKE),
    "wav2vec2, absent": Case(json.dumps(CONFIG), Reduction.STATISTIC, ALIKE, FIVE),
}


def build(**changes: Any) -> tuple[Learner, Wav2Vec2Objective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = Wav2Vec2Config.model_validate_json(json.dumps(CONFIG | changes)).build(
        {"picture": encoder}, Plan.unknown()
    )
    return Learner({"picture": encoder}, objective), objective


def test_quantizer_is_that_of_transformers_without_noise() -> None:
    transformers = pytest.importorskip("transformers")
    _, objective = build()
    settings = transformers.Wav2Vec2Config(
        num_codevector_groups=2, num_codevectors_per_group=4, codevector_dim=6, conv_dim=(16,), conv_stride=(2,),
        conv_kernel=(2,), num_feat_extract_layers=1,
    )  # fmt: skip
    theirs = transformers.models.wav2vec2.modeling_wav2vec2.Wav2Vec2GumbelVectorQuantizer(settings).eval()
    theirs.weight_proj.load_state_dict(objective.quantizer.score.state_dict())
    theirs.codevectors.data.copy_(objective.quantizer.codes.reshape(1, 8, 3))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    found = objective.quantizer(x, torch.zeros(2, 5, 8), 2.0)
    torch.testing.assert_close(found.features, theirs(x)[0])
    assert found.codes.max() < 16


def test_noise_is_gumbels_and_that_of_the_sample() -> None:
    noise = gumbel_noise(torch.arange(50), 123, 20, 30)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)
    assert torch.equal(gumbel_noise(torch.tensor([7]), 123, 20, 30)[0], noise[7])
    assert not torch.equal(gumbel_noise(torch.tensor([7]), 124, 20, 30)[0], noise[7])


def test_targets_are_inputs_from_before_the_mask() -> None:
    learner, objective = build()
    learner.eval()
    batch = toys.batch(3)
    mask = batch["picture"]["mask0"]
    encoder = learner.encoders["picture"]
    features = encoder(batch["picture"]["crop0"], replace=(mask, objective.mask_token))
    whole = encoder(batch["picture"]["crop0"])
    assert torch.equal(features.embedded, whole.embedded)
    context = F.normalize(objective.project(features.tokens[mask].view(3, 6, -1)), dim=-1)
    found = objective.quantizer(whole.embedded[mask].view(3, 6, -1), torch.zeros(3, 6, 8), 1.0)
    scores = context @ F.normalize(objective.project_codes(found.features), dim=-1).mT / 0.1
    costs = []
    for row in range(3):
        for i in range(6):
            others = [j for j in range(6) if j == i or found.codes[row, j] != found.codes[row, i]]
            costs.append(scores[row, i, others].logsumexp(0) - scores[row, i, i])
    out, _ = learner(batch)
    torch.testing.assert_close(out.terms["contrast"], torch.stack(costs).mean())
    assert 2 <= out.metrics["code_perplexity"] <= 8


def test_what_does_not_fit_is_refused() -> None:
    learner, objective = build(mask="uneven")
    with pytest.raises(ValueError, match="got masks of kind 'uneven' of 2 to 8 tokens, wanted equal numbers"):
        learner(toys.batch(4))
    learner, objective = build(mask="small")
    with pytest.raises(ValueError, match=r"got masks torch.uint8 .* wanted bool \[4, 16\]"):
        objective.check_views(toys.batch(4), learner.context())
    with pytest.raises(ValidationError, match="embedding: got 7, wanted a multiple of groups 2"):
        build(embedding=7)


def test_evaluation_has_no_noise() -> None:
    learner, _ = build()
    batch = toys.batch(4)
    assert learner(batch, 0, 2)[0].total != learner(batch, 1, 2)[0].total
    learner.eval()
    assert learner(batch, 0, 2)[0].total == learner(batch, 1, 2)[0].total
    moved = Batch(batch.views, batch.index + 5)
    learner.train()
    assert learner(batch)[0].total != learner(moved)[0].total
