"""Cross-entropy of views against the clusters of their samples, the loss of DeepCluster v2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNASSIGNED = -100
"""Cluster of a sample that has none: its loss is 0."""


def prototype_cross_entropy(z: Tensor, prototypes: Tensor, clusters: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each view's cosines with the prototypes against its sample's cluster, mean over views and heads.

    Caron et al. 2020 (arXiv:2006.09882), appendix D (DeepCluster v2). Slow loop of one sample::

        def loop(views, heads, clusters, temperature):
            losses = []
            for prototypes, cluster in zip(heads, clusters):
                for view in views:
                    logits = [dot(view, c) / temperature for c in prototypes]
                    losses.append(0.0 if cluster == -100 else log_sum_exp(logits) - logits[cluster])
            return mean(losses)

    Args:
        z: [V, n, E] unit embeddings of V views of n samples, float32 or float64.
        prototypes: [H, K, E] unit vectors of H clusterings; no gradient flows to them where they are buffers.
        clusters: [n, H] int64, cluster of each sample in each clustering, or `UNASSIGNED`.
        temperature: divisor of the cosines.

    Returns:
        [n] losses; that of equal cosines is ln K.
    """
    views, count = z.flatten(0, 1), len(z)
    losses = [
        F.cross_entropy(views @ own.T / temperature, labels.repeat(count), ignore_index=UNASSIGNED, reduction="none")
        for own, labels in zip(prototypes, clusters.T, strict=True)
    ]
    mean: Tensor = torch.stack(losses).unflatten(1, z.shape[:2]).mean((0, 1))
    return mean
