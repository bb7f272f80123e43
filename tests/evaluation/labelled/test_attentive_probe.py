"""The attentive probe: it finds the token that tells, chooses without test samples, repeats exactly, and leaves the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.errors import DataError
from mmssl.evaluation.labelled.attentive_probe import (
    AttentiveHead,
    AttentiveProbeConfig,
    Setting,
    attentive_classifier,
    train_head,
)
from mmssl.evaluation.labelled.base import Labelled, classifier_scores, warm_cosine
from mmssl.reporting.results import Results
from tests.evaluation.world import colour_shards, configured, knowing_model, modalities

WIDTH, TOKENS = 8, 5


def config(**values: Any) -> AttentiveProbeConfig:
    usual = {
        "shards": ["x"],
        "train_shards": ["y"],
        "modality": "picture",
        "heads": 2,
        "epochs": 30,
        "lrs": [0.03, 0.003],
    }
    return configured(AttentiveProbeConfig, **{**usual, "training_batch": 25, "weight_decays": [0.01], **values})


def hidden_tokens(n: int, seed: int, *, telling: bool = True) -> tuple[Tensor, Tensor]:
    """One token of five, marked in its first number, tells the class; the others say any, so that their mean hides it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    words = torch.randn(4, WIDTH - 1, generator=torch.Generator().manual_seed(99))
    said = torch.randint(0, 4, (n, TOKENS), generator=generator)
    place = torch.randint(0, TOKENS, (n,), generator=generator)
    if telling:
        said[torch.arange(n), place] = labels
    tokens = torch.cat([torch.zeros(n, TOKENS, 1), words[said]], 2)
    tokens[torch.arange(n), place, 0] = 3.0
    return tokens.half().flatten(1), labels


def scores_of(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **values: Any) -> dict[str, Any]:
    seen, other = Labelled(*train), Labelled(*test)
    answers, said = attentive_classifier(seen, WIDTH, config(**values))[0](other)
    return classifier_scores(seen, other, answers) | said


def test_it_finds_the_token_that_tells_which_a_mean_of_tokens_hides() -> None:
    scores = scores_of(hidden_tokens(400, 0), hidden_tokens(200, 1))
    assert scores["acc1"] > 0.95
    assert scores["acc1_ci95_low"] < scores["acc1"] <= scores["acc1_ci95_high"]
    assert scores["validation_acc1"] > 0.9
    assert (scores["n"], scores["n_train"], scores["chance"], scores["tokens"]) == (200, 400, 0.25, TOKENS)


def test_what_cannot_be_learned_scores_chance() -> None:
    labels = torch.arange(400) % 4
    scores = scores_of(hidden_tokens(400, 0, telling=False), hidden_tokens(400, 1, telling=False), epochs=3)
    assert scores["acc1"] == pytest.approx(0.25, abs=0.1)
    for constant in (torch.zeros(400, TOKENS * WIDTH), torch.ones(400, TOKENS * WIDTH)):
        collapsed = scores_of((constant.half(), labels), (constant.half(), labels), epochs=3)
        assert collapsed["acc1"] == 0.25, "one class is said of all"


def test_the_setting_is_chosen_without_the_test_samples_and_a_repetition_is_equal() -> None:
    train = hidden_tokens(200, 0)
    settings = {"lrs": [1e-6, 0.03], "epochs": 4}
    one, again, other = (scores_of(train, hidden_tokens(100, seed), **settings) for seed in (1, 1, 2))
    assert one == again
    assert (
        (one["lr"], one["validation_acc1"]) == (other["lr"], other["validation_acc1"]) == (0.03, one["validation_acc1"])
    )
    assert one["at_edge"] == 1
    different = scores_of(train, hidden_tokens(100, 1), **settings, seed=1)
    assert different != one


def test_the_head_is_its_formula() -> None:
    """Against a loop over samples, queries and tokens."""
    torch.manual_seed(0)
    head = AttentiveHead(WIDTH, 2, 3)
    nn.init.normal_(head.query)
    tokens = torch.randn(4, TOKENS, WIDTH)
    tokens[1, 3:] = 0  # padding
    head.scale_to(tokens, torch.arange(4))
    every = torch.cat([tokens[1, :3], tokens[[0, 2, 3]].flatten(0, 1)])
    x = (tokens - every.mean(0)) / every.std(0, correction=0)
    for i, row in enumerate(x):
        real = row[:3] if i == 1 else row
        found = []
        for query, value in zip(head.query, head.value, strict=True):
            weights = torch.stack([token @ query / WIDTH**0.5 for token in real]).softmax(0)
            found.append(sum((w * token for w, token in zip(weights, real, strict=True)), torch.zeros(WIDTH)) @ value)
        expected = head.classifier(head.norm(torch.cat(found)))
        assert torch.allclose(head(tokens)[i], expected, atol=1e-5)


def test_training_leaves_random_numbers_as_they_were() -> None:
    tokens, labels = hidden_tokens(40, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_head(tokens.view(-1, TOKENS, WIDTH), labels, torch.arange(40), 4, Setting(1e-3, 0.1), config(epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [warm_cosine(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0)
    assert warm_cosine(0, 1) > 0, "a single step has a rate"


class Patches(Encoder):
    """uint8 [B, 3, 8, 8] -> four tokens: the colours of the quarters, and one number that is always 1."""

    width, grid, capabilities = 4, (2, 2), frozenset({"tokens"})

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def prepare(self, x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    def forward(self, x: Tensor, **_: Any) -> Features:
        means = self.prepare(x).view(-1, 3, 2, 4, 2, 4).mean((3, 5)).flatten(2).transpose(1, 2)
        tokens = torch.cat([means, torch.ones_like(means[:, :, :1])], 2) * self.scale
        return Features(tokens.mean(1), tokens)

    def layers(self) -> list[list[nn.Parameter]]:
        return [[self.scale]]


def test_from_shards_to_scores_and_a_saved_head(tmp_path: Path) -> None:
    train, test = colour_shards(tmp_path / "train", 80), colour_shards(tmp_path / "test", 24)
    model = EmbeddingModel({"picture": Patches()}, {}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = config(train_shards=train, shards=test, batch_size=7, epochs=40)
    with settings.build(modalities()) as evaluator:
        scores = dict(evaluator.evaluate(model))
        results = Results(tmp_path / "out", "here", "digest")
        results.write("probe", settings, evaluator, evaluator.facts(), scores)
    assert scores["acc1"] == 1
    assert scores["acc5_chance"] == 5 / 8
    assert float(scores["acc5_ci95_low"] or 1) < 1
    assert (scores["n_train"], scores["n"], scores["n_excluded"]) == (64, 20, 4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    saved = load_file(tmp_path / "out" / "probe.safetensors")
    assert saved.pop("classes").tolist() == list(range(8))
    head = AttentiveHead(4, 2, 8)
    head.load_state_dict(saved)
    pixels = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert head(model.encoders["picture"](pixels).tokens).argmax() == 7, "white"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path, 16)

    def refused(model: EmbeddingModel, kind: type[Exception], says: str, **values: Any) -> None:
        settings = config(train_shards=shards, shards=shards, **values)
        with settings.build(modalities()) as evaluator, pytest.raises(kind, match=says):
            dict(evaluator.evaluate(model))

    patches = EmbeddingModel({"picture": Patches()}, {})
    refused(knowing_model(), ValueError, "got Seer for 'picture', which gives no tokens")
    refused(patches, ValueError, "got heads 3, wanted a divisor of 4", heads=3)
    says = "32 samples of 4 tokens of width 4 take 1.02e-06 GB, wanted at most 1e-07"
    refused(patches, DataError, says, memory=1e-7)
    with pytest.raises(DataError, match="got 2 training samples for the probe"):
        scores_of(hidden_tokens(2, 0), hidden_tokens(4, 1))
