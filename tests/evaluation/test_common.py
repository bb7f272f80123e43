"""From batches to items: unpacking, refusals by key, and a model that is left as it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.errors import NumericError, RecipeError
from mmssl.evaluation.common import inference, require_modalities, require_usable, warn_of_ties
from tests.evaluation.world import modalities

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "says"), [(torch.nan, "not finite"), (torch.inf, "not finite"), (0.0, "no direction")]
)
def test_unusable_rows_are_refused_by_key(value: float, says: str) -> None:
    rows = torch.ones(4, 2)
    rows[2] = value
    with pytest.raises(NumericError, match=f"'third'.*{says}.*1 of 4"):
        require_usable(rows, torch.tensor([5, 6, 7, 8]), {7: "third"}, "the embedding", unit=True)


def test_zero_features_are_allowed_where_no_direction_is_needed() -> None:
    zeros, owner, keys = torch.zeros(1, 2), torch.tensor([0]), {0: "k"}
    require_usable(zeros, owner, keys, "the feature", unit=False)
    with pytest.raises(NumericError, match="no direction"):
        require_usable(zeros, owner, keys, "the feature", unit=True)


def test_a_model_is_left_as_it_was() -> None:
    model = EmbeddingModel({"one": nn.Linear(2, 2), "two": nn.Dropout()}, {"one": nn.BatchNorm1d(2)})
    model.train()
    model.heads.eval()  # a frozen part
    before = [module.training for module in model.modules()]
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), inference(model):
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


class Casting(Encoder):
    """An encoder that notes in which type its products are."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.types: list[torch.dtype] = []

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, **asked: Any) -> Features:
        y = self.layer(x)
        self.types.append(y.dtype)
        return Features(y)

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.parameters()]]


def test_encoders_alone_compute_in_bfloat16_if_told_so() -> None:
    torch.manual_seed(0)
    encoder, head = Casting(), nn.Linear(4, 3)
    model = EmbeddingModel({"m": encoder}, {"m": head})
    x, seen = torch.randn(5, 6), []
    head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    found = []
    for precision in ("float32", "bf16"):
        with inference(model, precision):
            found.append((model.embed("m", x), model.features("m", x)))
        assert model.precision == "float32"
    assert encoder.types == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert set(seen) == {(torch.float32, torch.float32)}
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.02


def test_unknown_modalities_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'picture'"):
        require_modalities(modalities(), ["pictures"])


def test_ties_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_ties("here", 0.005)
        assert not caplog.records
        warn_of_ties("here", 0.5)
    assert "here: 50.0 % of the queries tie" in caplog.text
