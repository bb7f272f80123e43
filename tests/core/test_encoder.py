"""Freezing by layer groups, and the model that evaluators see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.core.encoder import EmbeddingModel, freeze
from tests.contracts.toys import Patches, Words


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3])
def test_freeze_leaves_the_last_groups(unlocked: int) -> None:
    encoder = Patches()
    groups = encoder.layers()
    assert len(groups) == 3
    freeze(encoder, unlocked)
    trainable = [all(p.requires_grad for p in group) for group in groups]
    assert trainable == [False] * (3 - unlocked) + [True] * unlocked
    locked = [any(p.requires_grad for p in group) for group in groups]
    assert locked == trainable


def test_layers_name_every_parameter_of_the_toys_once() -> None:
    for encoder in (Patches(), Words()):
        named = [id(p) for group in encoder.layers() for p in group]
        assert sorted(named) == sorted(id(p) for p in encoder.parameters())


def test_embedding_model_gives_features_and_unit_embeddings() -> None:
    torch.manual_seed(0)
    encoder, head = Patches(), nn.Linear(16, 5, bias=False)
    model = EmbeddingModel({"picture": encoder}, {"picture": head})
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    features, embedded = model.features("picture", x), model.embed("picture", x)
    assert torch.equal(features, encoder(x).pooled)
    assert torch.equal(embedded, F.normalize(head(features), dim=-1))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert model.device == torch.device("cpu")
    assert model.to(torch.bfloat16).embed("picture", x).dtype == torch.float32


def test_embedding_model_names_what_it_lacks() -> None:
    model = EmbeddingModel({"picture": Patches()}, {})
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"no encoder for 'sound': this model has \['picture'\]"):
        model.features("sound", x)
    with pytest.raises(ValueError, match=r"no shared space for 'picture'.*heads for no modality"):
        model.embed("picture", x)


def test_embedding_model_trims_before_it_moves() -> None:
    encoder = Words()
    encoder.trim = lambda x: x[:, :2]
    model = EmbeddingModel({"words": encoder}, {})
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model.features("words", ids), encoder(ids[:, :2]).pooled)
