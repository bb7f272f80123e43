"""InfoNCE of one positive key and a queue of negative keys: the loss of MoCo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.candidates import first_hits


def queue_info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """InfoNCE with a queue (memory bank): cross entropy of finding the key of a query among it and K keys of other samples.

    He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv:1911.05722), equation 1. Without
    gradient to keys and queue. Collapsed embeddings cost ln(K + 1). Slow loop::

        def loop(query, key, queue, temperature):
            loss = 0.0
            for q, k in zip(query, key):
                positive = dot(q, k) / temperature
                loss += log(1 + sum(exp(dot(q, other) / temperature - positive) for other in queue))
            return loss / len(query)

    Args:
        query: [B, E] unit-norm rows of this process, float32 or float64.
        key: [B, E] unit-norm, key_i belongs to query_i; detached here.
        queue: [K, E] unit-norm keys of earlier steps, the same on all processes.
        temperature: divisor of the cosines.
        same: [B, K] bool, rows of the queue that are of the query's own sample, and no negatives; None: there are none.

    Returns:
        [] this process' share of the loss: the mean over processes is the mean over the samples of all.
        [] this process' share of the accuracy, detached: how often the own key is the nearest of K + 1; a tie among n counts 1/n.
        It is not left for later, because the queue then holds the keys themselves.

    Raises:
        ValueError: shapes do not match.
    """
    if query.shape != key.shape or queue.ndim != 2 or queue.shape[1:] != query.shape[1:]:
        raise ValueError(
            f"got queries {list(query.shape)}, keys {list(key.shape)} and a queue {list(queue.shape)}, "
            "wanted [B, E], [B, E] and [K, E]"
        )
    positive = (query * key.detach()).sum(-1, keepdim=True)
    negative = query @ queue.detach().T
    if same is not None:
        negative = negative.masked_fill(same, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    loss = distributed.mean(F.cross_entropy(logits, target, reduction="none"))
    return loss, distributed.mean(first_hits(logits.detach(), target))
