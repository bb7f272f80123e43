"""Ranking first: ties count by their share."""

from __future__ import annotations

import pytest
import torch

from mmssl.losses.candidates import first_hits, positive_indices


@pytest.mark.parametrize(
    ("row", "target", "rate"),
    [
        ([3.0, 1.0, 2.0], 0, 1.0),
        ([3.0, 1.0, 2.0], 2, 0.0),
        ([3.0, 3.0, 2.0], 1, 0.5),
        ([3.0, 3.0, 2.0], 2, 0.0),
        ([1.0] * 4, 3, 0.25),
    ],
)
def test_first_hits_of_one_row(row: list[float], target: int, rate: float) -> None:
    assert first_hits(torch.tensor([row]), torch.tensor([target])).item() == rate


def test_first_hits_have_no_graph() -> None:
    logits = torch.eye(4, requires_grad=True)
    hits = first_hits(logits, torch.tensor([0, 1, 0, 1]))
    assert hits.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert not hits.requires_grad


def test_positives_start_at_the_offset() -> None:
    assert positive_indices(torch.zeros(2, 3), torch.zeros(6, 3), 4).tolist() == [4, 5]
