"""Clusterings of a bank: k-means of one view each, their measures, too few samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.heads.bank import SampleBank
from mmssl.losses.deepcluster import UNASSIGNED
from mmssl.losses.kmeans import spherical_kmeans
from mmssl.objectives.parts.clusterings import Clusterings
from tests.losses.inputs import unit_rows


def fitted(samples: int = 20) -> Clusterings:
    bank = SampleBank(22, 2, 4).double()
    views = torch.stack(unit_rows(samples, 4), 1)
    bank.rows[1 : samples + 1] = views
    torch.manual_seed(0)
    made = Clusterings(3, 5, 4, 22).double()
    made.fit(bank, 6, torch.Generator().manual_seed(1))
    return made


def test_each_clustering_is_k_means_of_one_view_from_random_samples() -> None:
    made, random = fitted(), torch.Generator().manual_seed(1)
    views = unit_rows(20, 4)
    for number in range(3):
        x = views[number % 2]
        centroids, nearest = spherical_kmeans(x, x[torch.randperm(20, generator=random)[:5]], 6)
        torch.testing.assert_close(made.prototypes[number], centroids)
        assert made.clusters[1:21, number].tolist() == nearest.tolist()
    assert made.clusters[[0, 21]].unique().tolist() == [UNASSIGNED]
    assert not torch.equal(made.prototypes[0], made.prototypes[2]), "of one view, from other starts"


def test_measures_of_a_clustering() -> None:
    """Two groups far apart: clusters are of equal size, and the same every time, under other names."""
    bank, made = SampleBank(8, 1, 2), Clusterings(2, 2, 2, 8)
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3]).repeat(2) + torch.tensor([0.0, 3.0]).repeat_interleave(4)
    bank.rows[:, 0] = torch.stack([angles.cos(), angles.sin()], 1)
    made.fit(bank, 10, torch.Generator().manual_seed(0))
    assert made.perplexity.item() == pytest.approx(2)
    assert made.agreement.item() == 0
    made.fit(bank, 10, torch.Generator().manual_seed(3))
    assert made.agreement.item() == pytest.approx(1)
    torch.testing.assert_close(made.prototypes.norm(dim=-1), torch.ones(2, 2))


def test_fewer_samples_than_prototypes_are_refused() -> None:
    with pytest.raises(ValueError, match="prototypes: got 5, wanted at most 4, the samples that could be read"):
        fitted(4)


def test_prototypes_start_as_unit_vectors() -> None:
    prototypes = Clusterings(2, 3, 4, 0).prototypes
    torch.testing.assert_close(prototypes, F.normalize(prototypes, dim=-1))
    assert prototypes.flatten(0, 1).unique(dim=0).shape == (6, 4)
