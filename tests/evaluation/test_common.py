"""From batches to items: unpacking, refusals by key, and a model that is left as it was."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

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
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[2].eval()  # a frozen part
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), inference(model):
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()


def test_unknown_modalities_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'picture'"):
        require_modalities(modalities(), ["pictures"])


def test_ties_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_ties("here", 0.005)
        assert not caplog.records
        warn_of_ties("here", 0.5)
    assert "here: 50.0 % of the queries tie" in caplog.text
