"""Prototypes against torch's weight norm and lightly; the start of DINO's head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mmssl.heads.projection import MLPProjectionConfig
from mmssl.heads.prototypes import Prototypes, WeightNormPrototypes, truncated_normal


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_weight_norm_of_torch() -> None:
    """With the magnitude fixed at 1, in values and in the update."""
    torch.manual_seed(0)
    ours, linear = WeightNormPrototypes(6, 9).double(), nn.Linear(6, 9, bias=False).double()
    linear.weight.data.copy_(3 * ours.weight.data)
    theirs = parametrizations.weight_norm(linear)
    theirs.parametrizations.weight.original0.data.fill_(1)
    theirs.parametrizations.weight.original0.requires_grad_(False)
    x = rows(5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.weight.data.mul_(3)
    for prototypes in (ours, theirs):
        F.cross_entropy(prototypes(x), torch.arange(5)).backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original1.grad)


def test_equals_the_head_of_lightly() -> None:
    heads = pytest.importorskip("lightly.models.modules.heads", reason="the extra `oracles` is not installed")
    torch.manual_seed(0)
    theirs = heads.DINOProjectionHead(12, 16, 6, 9).double()
    mlp = MLPProjectionConfig(hidden=16, layers=3, norm="none", activation="gelu").build(12, 6).double()
    prototypes = WeightNormPrototypes(6, 9).double()
    with torch.no_grad():
        for mine, other in zip(mlp.parameters(), theirs.layers.parameters(), strict=True):
            mine.copy_(other)
        prototypes.weight.copy_(theirs.last_layer.weight_v)
    x = rows(5, 12)
    torch.testing.assert_close(prototypes(F.normalize(mlp(x), dim=-1)), theirs(x))


def test_the_start_is_that_of_dino() -> None:
    torch.manual_seed(0)
    head = truncated_normal(MLPProjectionConfig(hidden=512, layers=3, norm="batch").build(256, 128))
    linears = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert len(linears) == 3
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    assert linears[-1].bias is not None
    # nn.Linear's own for the last layer: uniform within 1 / sqrt(E).
    weight = WeightNormPrototypes(100, 50).weight
    assert 0.095 < weight.abs().max().item() <= 0.1


def test_prototypes_are_unit_rows_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    prototypes, x = Prototypes(6, 9), rows(5, 6).float()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(9))
    directions = prototypes.weight.detach().clone()
    prototypes.weight.data *= torch.linspace(0.5, 3, 9)[:, None]
    torch.testing.assert_close(prototypes(x), x @ prototypes.weight.T)
    prototypes.normalise()
    torch.testing.assert_close(prototypes.weight.detach(), directions)
