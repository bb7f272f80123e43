"""Projections: initialisation of CLIP, layers of SimCLR, refusals."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mmssl.core.batch_norm import GlobalBatchNorm
from mmssl.heads.projection import HeadConfig, LinearProjection, MLPProjection, MLPProjectionConfig

CONFIGS: TypeAdapter[HeadConfig] = TypeAdapter(HeadConfig)


@pytest.mark.parametrize("width", [64, 768])
def test_linear_starts_as_in_clip(width: int) -> None:
    torch.manual_seed(0)
    head = LinearProjection(width, 512)
    assert [(name, p.shape) for name, p in head.named_parameters()] == [("linear.weight", (512, width))]
    assert head.linear.weight.std().item() == pytest.approx(width**-0.5, rel=0.02)
    assert abs(head.linear.weight.mean().item()) < 3e-3
    x = torch.randn(3, width)
    torch.testing.assert_close(head(2 * x), 2 * head(x))


NAMES = {GlobalBatchNorm: "batch", nn.LayerNorm: "layer", nn.ReLU: "relu", nn.GELU: "gelu"}


def describe(step: nn.Module) -> str:
    if isinstance(step, nn.Linear):
        return f"linear {step.in_features}-{step.out_features}" + (" bias" if step.bias is not None else "")
    return NAMES[type(step)]


def shapes(head: MLPProjection) -> list[str]:
    return [describe(step) for step in head.steps]


def test_mlp_is_the_head_of_simclr() -> None:
    head = MLPProjection(32, 64, 8, norm_last=True)
    assert shapes(head) == ["linear 32-64", "batch", "relu", "linear 64-8", "batch"]
    assert head(torch.randn(5, 32)).shape == (5, 8)


def test_mlp_is_the_head_of_slip() -> None:
    head = MLPProjection(32, 64, 8, layers=3)
    assert shapes(head) == ["linear 32-64", "batch", "relu", "linear 64-64", "batch", "relu", "linear 64-8 bias"]


def test_mlp_is_the_head_of_dino() -> None:
    head = MLPProjection(32, 64, 8, layers=3, norm="none", activation="gelu")
    assert shapes(head) == ["linear 32-64 bias", "gelu", "linear 64-64 bias", "gelu", "linear 64-8 bias"]
    config = MLPProjectionConfig(hidden=64, layers=3, norm="none", activation="gelu")
    built = config.build(32, 8)
    assert isinstance(built, MLPProjection)
    assert shapes(built) == shapes(head)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_last_norm_may_lack_scale_and_shift(norm: Literal["batch", "layer"]) -> None:
    """As in the projection of SimSiam."""
    head = MLPProjection(32, 64, 8, layers=3, norm=norm, norm_last=True, affine_last=False)
    norms = [step for step in head.steps if isinstance(step, GlobalBatchNorm | nn.LayerNorm)]
    assert [len(list(step.parameters())) for step in norms] == [2, 2, 0]


def test_mlp_with_other_norms() -> None:
    assert shapes(MLPProjection(4, 6, 2, norm="none")) == ["linear 4-6 bias", "relu", "linear 6-2 bias"]
    layered = MLPProjection(4, 6, 2, norm="layer", norm_last=True)
    assert shapes(layered) == ["linear 4-6 bias", "layer", "relu", "linear 6-2 bias", "layer"]
    assert shapes(MLPProjection(4, 6, 2, layers=1, norm="none")) == ["linear 4-2 bias"]


def test_mlp_without_a_last_bias() -> None:
    assert shapes(MLPProjection(4, 6, 2, norm="none", bias_last=False)) == ["linear 4-6 bias", "relu", "linear 6-2"]
    assert shapes(MLPProjection(4, 6, 2, bias_last=False)) == ["linear 4-6", "batch", "relu", "linear 6-2"]


@pytest.mark.parametrize(
    "text", ['{"kind": "linear"}', '{"kind": "mlp", "hidden": 7, "norm": "layer"}', '{"kind": "identity"}']
)
def test_configs_build_heads_of_the_asked_shape(text: str) -> None:
    head = CONFIGS.validate_json(text).build(6, 6)
    assert head(torch.randn(3, 6)).shape == (3, 6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"kind": "mlp"}', "Field required"),
        ('{"kind": "mlp", "hidden": 0}', "greater than 0"),
        ('{"kind": "mlp", "hidden": 8, "layers": 1}', "greater than or equal to 2"),
        ('{"kind": "mlp", "hidden": 8, "norm": "none", "norm_last": true}', "with norm: none, which has no effect"),
        ('{"kind": "mlp", "hidden": 8, "norm": "group"}', "'batch', 'layer' or 'none'"),
        ('{"kind": "linear", "bias": true}', "Extra inputs"),
        ('{"kind": "conv"}', "does not match any of the expected tags"),
    ],
)
def test_configs_refuse(text: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        CONFIGS.validate_json(text)


def test_identity_needs_equal_sizes() -> None:
    config = CONFIGS.validate_json('{"kind": "identity"}')
    assert isinstance(config.build(6, 6), nn.Identity)
    with pytest.raises(ValueError, match=r"width 5 for an embedding of 6.*embedding: 5"):
        config.build(5, 6)
