"""Clusterings of a bank of embeddings by k-means, and the cluster of every training sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.heads.bank import SampleBank
from mmssl.losses.deepcluster import UNASSIGNED
from mmssl.losses.kmeans import cluster_perplexity, draw_starts, normalised_mutual_information, spherical_kmeans


class Clusterings(nn.Module):
    """H spherical k-means clusterings of all training samples, each into K clusters; equal on all processes.

    Attributes:
        prototypes: [H, K, E], unit centroids; random before the first `fit`.
        clusters: [N, H] int64, cluster of each sample, or `UNASSIGNED`.
        perplexity: [], exponential of the entropy of cluster sizes, mean over clusterings: K if they are equally large.
        agreement: [], NMI with the clusterings before the last `fit`, mean over clusterings; 0 after the first.

    Args:
        count: H.
        size: K.
        width: E.
        samples: N; 0 in a model that is not trained.
    """

    prototypes: Tensor
    clusters: Tensor
    perplexity: Tensor
    agreement: Tensor

    def __init__(self, count: int, size: int, width: int, samples: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", F.normalize(torch.randn(count, size, width), dim=-1))
        self.register_buffer("clusters", torch.full((samples, count), UNASSIGNED))
        self.register_buffer("perplexity", torch.zeros(()))
        self.register_buffer("agreement", torch.zeros(()))

    @torch.no_grad()
    def fit(self, bank: SampleBank, iterations: int, random: torch.Generator) -> None:
        """Cluster a bank of V unit rows a sample, [N, V, E]; clustering h is of row h modulo V. Every process must call.

        Args:
            bank: samples without rows get no cluster.
            iterations: of k-means.
            random: on the CPU, equal on all processes: it draws the samples that k-means starts from.

        Raises:
            ValueError: fewer samples have rows than there are prototypes.
        """
        known, (count, size) = bank.known(), self.prototypes.shape[:2]
        if len(known) < size:
            raise ValueError(f"prototypes: got {size}, wanted at most {len(known)}, the samples that could be read")
        mine = known.tensor_split(distributed.world_size())[distributed.rank()]
        before = self.clusters[known]
        for number in range(count):
            x = bank.rows[:, number % bank.rows.shape[1]]
            starts, _ = draw_starts(x[known], size, random)
            self.prototypes[number], nearest = spherical_kmeans(x[mine], starts, iterations)
            self.clusters[known, number] = distributed.gather_uneven(nearest)
        pairs = [*zip(self.clusters[known].T, before.T, strict=True)]
        self.perplexity.copy_(torch.stack([cluster_perplexity(now) for now, _ in pairs]).mean())
        self.agreement.copy_(torch.stack([normalised_mutual_information(*pair) for pair in pairs]).mean())
