"""Items that repeat between samples, and what they cost the best possible model in retrieval. Pure functions."""

from __future__ import annotations

import torch

from mmssl.evaluation.collect import Items


def duplicate_count(items: Items) -> int:
    """Number of items that another sample has too, byte for byte: a model cannot break the tie between them."""
    pairs = torch.unique(torch.stack([items.digest, items.owner], 1), dim=0)
    _, inverse, samples = torch.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    shared = pairs[samples[inverse] > 1, 0]
    return int(torch.isin(items.digest, shared).sum())


def recall_ceiling(queries: Items, candidates: Items) -> float:
    """Best R@1 that any model can reach under the tie rule: below 1 if items repeat between samples.

    Equal queries get one answer, so only those of one sample can be right. Of equal candidates the first wins every tie, so only
    its sample can be right. The bound is a sum over distinct queries, divided by the number of queries: for each, the largest
    number of copies in one sample that owns such a first candidate.
    """
    order = candidates.digest.sort(stable=True)
    first = order.indices[torch.cat([torch.ones_like(order.values[:1]), order.values.diff()]) != 0]
    can = torch.isin(queries.owner, candidates.owner)
    pairs = torch.stack([queries.digest, queries.owner], 1)[can]
    distinct, copies = torch.unique(pairs, dim=0, return_counts=True)
    copies = copies * torch.isin(distinct[:, 1], candidates.owner[first])
    groups = torch.unique(distinct[:, 0], return_inverse=True)[1]
    most = torch.zeros(int(groups.max()) + 1, dtype=copies.dtype, device=copies.device)
    most.scatter_reduce_(0, groups, copies, "amax")
    return int(most.sum()) / len(pairs)
