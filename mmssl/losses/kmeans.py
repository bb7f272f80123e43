"""K-means over all processes, of rows or of unit vectors, and how much two clusterings agree (NMI)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

SCORES = 2**24
"""Most cosines or distances that are held at a time."""
NEAR = 1e-4
"""Largest distance of rows that are alike, as a share of their norm: rounding differs with the size of batches."""


@torch.no_grad()
def draw_starts(x: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, int]:
    """Draw first centroids among rows, such that as many as possible differ: a row like an earlier one stands behind all others.

    Of equal centroids rounding decides which gets the rows, and the others get none. Silence and plain backgrounds give many.

    Args:
        x: [n, D] rows, equal on all processes, n at least `count`.
        count: K.
        random: on the CPU, equal on all processes.

    Returns:
        Rows [K, D], and how many of them differ.
    """
    order = torch.randperm(len(x), generator=random).to(x.device)
    chosen = copies = order[:0]
    for some in order.split(max(1, min(count, SCORES // (2 * count)))):
        rows = x[torch.cat([chosen, some])]
        distance = torch.cdist(rows[len(chosen) :], rows, compute_mode="donot_use_mm_for_euclid_dist")
        copied = (distance <= NEAR * rows.norm(dim=1)).tril(len(chosen) - 1).any(1)  # of rows before it
        chosen, copies = torch.cat([chosen, some[~copied]]), torch.cat([copies, some[copied]])
        if len(chosen) >= count:
            break
    return x[torch.cat([chosen, copies])[:count]], min(len(chosen), count)


@torch.no_grad()
def spherical_kmeans(x: Tensor, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Spherical k-means: cluster unit vectors by cosine; each centroid is the normalised mean of its rows, of all processes.

    Dhillon and Modha 2001, as in DeepCluster v2 (Caron et al. 2020, arXiv:2006.09882). A cluster without rows keeps its centroid.
    Slow loop, on one process::

        def loop(x, starts, iterations):
            centroids, count = [unit(c) for c in starts], len(starts)
            for iteration in range(iterations + 1):
                nearest = [max(range(count), key=lambda k: (dot(row, centroids[k]), -k)) for row in x]
                if iteration == iterations:
                    return centroids, nearest
                for k in range(count):
                    rows = [row for row, number in zip(x, nearest) if number == k]
                    if rows:
                        centroids[k] = unit([sum(column) for column in zip(*rows)])

    Sums are matrix products, which repeat bit by bit on every device, in float64, so that rounding does not depend on shares of
    the rows.

    Args:
        x: [n, D] unit rows of this process; processes may have different numbers of them, also none.
        starts: [K, D] first centroids, equal on all processes.
        iterations: updates of the centroids.

    Returns:
        Centroids [K, D], equal on all processes, and the number of the nearest for each row of this process, [n] int64.
    """
    centroids = F.normalize(starts, dim=1)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids, dtype=torch.float64)
        for rows in _parts(x, centroids):
            sums += _members((rows @ centroids.T).argmax(1), len(centroids)).T @ rows.double()
        sums = distributed.total_detached(sums)
        centroids = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1).to(x.dtype), centroids)
    return centroids, torch.cat([(rows @ centroids.T).argmax(1) for rows in _parts(x, centroids)])


@torch.no_grad()
def kmeans(x: Tensor, starts: Tensor, iterations: int) -> Tensor:
    """K-means (Lloyd): cluster rows by distance; each centroid is the mean of its rows, of all processes.

    A cluster without rows keeps its centroid. Slow loop, on one process::

        def loop(x, starts, iterations):
            centroids, count = [c for c in starts], len(starts)
            for _ in range(iterations):
                nearest = [min(range(count), key=lambda k: (dot(r - centroids[k], r - centroids[k]), k)) for r in x]
                for k in range(count):
                    rows = [row for row, number in zip(x, nearest) if number == k]
                    if rows:
                        centroids[k] = stack(rows).mean(0)
            return stack(centroids)

    Args:
        x: [n, D] rows of this process; processes may have different numbers of them, also none.
        starts: [K, D] first centroids, equal on all processes.
        iterations: largest number of updates of the centroids; it ends before where none moves.

    Returns:
        Centroids [K, D], equal on all processes.
    """
    centroids = starts.clone()
    for _ in range(iterations):
        sums = centroids.new_zeros(len(centroids), x.shape[1] + 1, dtype=torch.float64)  # the last column counts
        for rows in _parts(x, centroids):
            members = _members(nearest_centroid(rows, centroids), len(centroids))
            sums += members.T @ F.pad(rows.double(), (0, 1), value=1.0)
        sums = distributed.total_detached(sums)
        means = (sums[:, :-1] / sums[:, -1:].clamp(min=1)).to(x.dtype)
        moved = torch.where(sums[:, -1:] > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest centroid [K, D] of each row [..., D], by distance, int64 [...]; the first of several.

    In the type of `x`, also under autocast: the codes of a step are those that k-means was fitted to.
    """
    with torch.autocast(x.device.type, enabled=False):
        return (x @ centroids.T - centroids.square().sum(1) / 2).argmax(-1)


def _members(nearest: Tensor, count: int) -> Tensor:
    """[n] numbers of clusters -> float64 [n, K], 1 in the column of the cluster and 0 in the others."""
    return torch.zeros(len(nearest), count, dtype=torch.float64, device=nearest.device).scatter_(1, nearest[:, None], 1)


def _parts(x: Tensor, centroids: Tensor) -> Iterator[Tensor]:
    yield from x.split(max(1, SCORES // len(centroids)))


def normalised_mutual_information(a: Tensor, b: Tensor) -> Tensor:
    """Normalised mutual information (NMI) of two clusterings of n samples, [n] int64 each: 1 equal up to names, 0 independent.

    By the mean of both entropies; 1 if both have one cluster. Returns [] float64.
    """
    joint = torch.stack([a, b], 1)
    both, first, second = (_entropy(clusters) for clusters in (joint, joint[:, :1], joint[:, 1:]))
    mean = (first + second) / 2
    return torch.where(mean > 0, (first + second - both) / mean.clamp(min=1e-300), torch.ones_like(mean))


def cluster_perplexity(clusters: Tensor) -> Tensor:
    """Exponential of the entropy of cluster sizes, [n] int64 -> [] float64: the number of clusters, if they are equally large."""
    return _entropy(clusters[:, None]).exp()


def _entropy(rows: Tensor) -> Tensor:
    """Of the distribution of [n, d] rows, in nats."""
    counts: Tensor = rows.unique(dim=0, return_counts=True)[1]
    share = counts.double() / len(rows)
    return -(share * share.log()).sum()
