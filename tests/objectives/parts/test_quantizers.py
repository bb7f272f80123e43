"""Quantizers: golden codes of a random projection; centroids do not depend on who holds which sample; too few rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.objectives.parts.quantizers import CentroidsConfig, RandomProjectionConfig
from tests.losses.inputs import golden_rows, sines


def test_golden_codes_of_a_random_projection() -> None:
    quantizer = RandomProjectionConfig(codes=12, embedding=16).build(16).double()
    quantizer.projection.copy_(sines(16, 16, 0.2, 0.37, 0.05))
    quantizer.codes.copy_(F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=1))
    assert quantizer(golden_rows()[0]).tolist() == [0, 0, 0, 0, 8, 3, 8, 8]


def test_centroids_find_clusters_whatever_the_order_of_samples() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.tensor([[9.0, 0], [0, 9], [-9, 0]])
    rows = centres.repeat(4, 1).view(6, 2, 2) + 0.1 * torch.randn(6, 2, 2, generator=random)
    found = []
    for order in (torch.arange(6), torch.tensor([4, 2, 0, 5, 1, 3])):
        quantizer = CentroidsConfig(codes=3, iterations=20).build(2)
        quantizer.fit(order, rows[order], torch.Generator().manual_seed(1))
        found.append(quantizer.points)
        assert quantizer(centres).unique().numel() == 3
        assert quantizer(rows).shape == (6, 2)
    assert torch.equal(*found)


def test_fewer_different_rows_than_centroids_are_refused() -> None:
    with pytest.raises(ValueError, match="codes: got 5, wanted at most 1, the different rows among the 6"):
        CentroidsConfig(codes=5).build(2).fit(torch.arange(3), torch.zeros(3, 2, 2), torch.Generator())
