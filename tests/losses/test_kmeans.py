"""Spherical k-means: its loop, golden values, scikit-learn's nearest centroid, two processes; NMI against scikit-learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses import kmeans
from mmssl.losses.kmeans import cluster_perplexity, normalised_mutual_information, spherical_kmeans
from tests.distributed.processes import Processes
from tests.losses.inputs import rows, sines, unit_rows
from tests.losses.slow_loop import slow_loop

STARTS = [0, 4, 8]
GOLDEN_CLUSTERS = [0, 1, 0, 0, 1, 0, 2, 2, 2, 1, 1, 1]
GOLDEN_COSINES = 6.93449028830117
"""Of ssl-golden-values-2.json, deepcluster_assignments and deepcluster_objective_sum_cosine: 12 rows, starts 0, 4 and 8."""


def golden_bank() -> Tensor:
    return F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=-1)


@pytest.mark.parametrize(("n", "count", "iterations"), [(1, 1, 3), (9, 3, 0), (30, 4, 1), (40, 7, 10)])
def test_equals_the_slow_loop(n: int, count: int, iterations: int) -> None:
    x, other = unit_rows(n, 5, seed=n)
    starts = torch.cat([x, other])[:count]
    centroids, nearest = spherical_kmeans(x, starts, iterations)
    loop = slow_loop(spherical_kmeans, unit=lambda c: F.normalize(torch.as_tensor(c), dim=0))
    expected, clusters = loop(x, starts, iterations)
    torch.testing.assert_close(centroids, torch.stack(expected))
    assert nearest.tolist() == clusters


def test_golden_values() -> None:
    bank = golden_bank()
    centroids, nearest = spherical_kmeans(bank, bank[STARTS], 10)
    assert nearest.tolist() == GOLDEN_CLUSTERS
    assert (bank * centroids[nearest]).sum().item() == pytest.approx(GOLDEN_COSINES, rel=1e-13)


def test_nearest_centroids_are_those_of_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = unit_rows(50, 6)
    centroids, nearest = spherical_kmeans(x, x[:5], 4)
    once = cluster.KMeans(5, init=centroids.numpy(), n_init=1, max_iter=1)
    once.fit(centroids.numpy())  # of unit vectors the nearest is the one of the largest cosine
    assert nearest.tolist() == once.predict(x.numpy()).tolist()


def test_a_cluster_without_rows_keeps_its_centroid() -> None:
    x = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1]], dtype=torch.float64), dim=1)
    starts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    centroids, nearest = spherical_kmeans(x, starts, 10)
    torch.testing.assert_close(centroids, starts)
    assert nearest.tolist() == [0, 0]


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = unit_rows(40, 5)
    whole = spherical_kmeans(x, x[:4], 5)
    monkeypatch.setattr(kmeans, "SCORES", 4 * 7)
    parts = spherical_kmeans(x, x[:4], 5)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def of_uneven_shares(border: int) -> tuple[Tensor, Tensor]:
    x, _ = unit_rows(40, 5)
    mine = x[:border] if distributed.rank() == 0 else x[border:]
    centroids, nearest = spherical_kmeans(mine, x[:4], 5)
    return centroids, distributed.gather_uneven(nearest)


@pytest.mark.parametrize("border", [0, 13])
def test_two_processes_equal_one(two_processes: Processes, border: int) -> None:
    x, _ = unit_rows(40, 5)
    centroids, nearest = spherical_kmeans(x, x[:4], 5)
    first, second = two_processes.run(of_uneven_shares, [(border,)] * 2)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], centroids)
    assert torch.equal(first[1], nearest)
    assert torch.equal(second[1], nearest)


def test_mutual_information_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = torch.Generator().manual_seed(0)
    a = torch.randint(0, 5, (200,), generator=random)
    b = torch.where(torch.rand(200, generator=random) < 0.6, a, torch.randint(0, 7, (200,), generator=random))
    expected = metrics.normalized_mutual_info_score(a.numpy(), b.numpy())
    assert 0.1 < expected < 0.9
    assert normalised_mutual_information(a, b).item() == pytest.approx(expected, rel=1e-10)


def test_analytic_values() -> None:
    a, other = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert normalised_mutual_information(a, 7 - a).item() == pytest.approx(1)
    assert normalised_mutual_information(a, other).item() == pytest.approx(0)
    assert normalised_mutual_information(a, torch.full((4,), -100)).item() == 0
    assert normalised_mutual_information(torch.ones(4), torch.ones(4)).item() == 1
    assert cluster_perplexity(torch.arange(6)).item() == pytest.approx(6)
    assert cluster_perplexity(torch.zeros(6)).item() == 1


@pytest.mark.parametrize(("n", "count", "iterations"), [(1, 1, 3), (9, 3, 0), (30, 4, 1), (40, 7, 10)])
def test_kmeans_of_rows_equals_the_slow_loop(n: int, count: int, iterations: int) -> None:
    x, _ = rows(n, 5, seed=n)
    found = kmeans.kmeans(x, x[:count], iterations)
    torch.testing.assert_close(found, slow_loop(kmeans.kmeans)(x, x[:count], iterations))


def test_kmeans_of_rows_ends_where_that_of_scikit_learn_does() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = rows(60, 4)
    found = kmeans.kmeans(x, x[:5], 50)
    other = cluster.KMeans(5, init=x[:5].numpy(), n_init=1, max_iter=50, tol=0).fit(x.numpy())
    torch.testing.assert_close(found, torch.from_numpy(other.cluster_centers_))
    assert kmeans.nearest_centroid(x, found).tolist() == other.labels_.tolist()


def test_starts_differ_where_rows_do() -> None:
    """Half of the rows are silence: with equal starts, rounding by another size of batch decided who got its rows."""
    x, _ = rows(60, 4)
    x[::2] = x[0]
    for noise in (0.0, 1e-6):
        noisy = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
        starts, different = kmeans.draw_starts(noisy, 8, torch.Generator().manual_seed(0))
        assert different == len(starts) == 8
        assert torch.cdist(starts, starts).add(torch.eye(8)).min() > 0.1
        torch.testing.assert_close(kmeans.kmeans(noisy, starts, 20), kmeans.kmeans(x, starts, 20), atol=1e-4, rtol=0)
    every, different = kmeans.draw_starts(x, 40, torch.Generator().manual_seed(0))
    assert (len(every), different) == (40, 31)
    assert every[:31].unique(dim=0).shape == (31, 4)
    assert kmeans.draw_starts(torch.zeros(5, 3), 3, torch.Generator())[1] == 1


def test_starts_of_different_rows_are_the_first_of_a_permutation() -> None:
    x, _ = rows(20, 4)
    found, _ = kmeans.draw_starts(x, 6, torch.Generator().manual_seed(3))
    assert torch.equal(found, x[torch.randperm(20, generator=torch.Generator().manual_seed(3))[:6]])
