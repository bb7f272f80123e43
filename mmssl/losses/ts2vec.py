"""Hierarchical contrastive loss of TS2Vec: two crops of each series are compared at every time, and at coarser and coarser ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed


def ts2vec(
    a: Tensor, b: Tensor, *, all_a: Tensor | None = None, all_b: Tensor | None = None, offset: int = 0
) -> Tensor:
    """Hierarchical contrastive loss: at each time other series are negatives, in each series other times; mean over scales.

    Yue et al. 2022, "TS2Vec: Towards Universal Representation of Time Series" (arXiv:2106.10466), equations 1 to 3 and algorithm 1,
    as in its code: dot products without a temperature; each scale is the maximum of two neighbours of the one before; the last
    scale, of one time, compares series alone. Slow loop, over the rows of one process that sees them all::

        def loop(a, b):
            def contrast(a, b):
                z, n, loss = [*a, *b], len(a), 0.0
                for i in range(2 * n):
                    partner = (i + n) % (2 * n)
                    similarity = [dot(z[i], z[k]) for k in range(2 * n)]
                    loss += log(sum(exp(similarity[k] - similarity[partner]) for k in range(2 * n) if k != i))
                return loss / (2 * n)

            scales = []
            while True:
                series, times = a.shape[:2]
                instance = mean([contrast(a[:, t], b[:, t]) for t in range(times)])
                if times == 1:
                    return mean([*scales, instance / 2])
                temporal = mean([contrast(a[s], b[s]) for s in range(series)])
                scales.append(instance / 2 + temporal / 2)
                a, b = (x[:, : times // 2 * 2].unflatten(1, (-1, 2)).amax(2) for x in (a, b))

    Args:
        a: [B, T, D] tokens of the times that two crops share, from the first crop, of this process; float32 or float64.
        b: [B, T, D] tokens of the same times from the second crop.
        all_a: [G, T, D] of all processes (gathered with gradient); None: one process, all rows are in `a`.
        all_b: [G, T, D].
        offset: where this process' rows start among all of them.

    Returns:
        [] this process' share of the mean over series.

    Raises:
        ValueError: shapes or offset do not match.
    """
    all_a, all_b = a if all_a is None else all_a, b if all_b is None else all_b
    if a.shape != b.shape or a.ndim != 3 or all_a.shape != all_b.shape or all_a.shape[1:] != a.shape[1:]:
        raise ValueError(
            f"got tokens {tuple(a.shape)} and {tuple(b.shape)} among {tuple(all_a.shape)} and {tuple(all_b.shape)}, wanted "
            "[B, T, D] twice and [G, T, D] twice"
        )
    if not 0 <= offset <= len(all_a) - len(a):
        raise ValueError(
            f"got offset {offset} for {len(a)} rows among {len(all_a)}: give rank * B and the rows of all processes"
        )
    scales: list[Tensor] = []
    while True:
        at, at_b, all_at, all_at_b = (x.transpose(0, 1) for x in (a, b, all_a, all_b))  # [T, B, D] and [T, G, D]
        costs = _contrast(at, at_b, all_at, all_at_b, offset).mean(0) / 2
        if a.shape[1] == 1:
            return distributed.mean(torch.stack([*scales, costs]).mean(0))
        scales.append(costs + _contrast(a, b, a, b, 0).mean(1) / 2)
        a, b, all_a, all_b = (_halved(x) for x in (a, b, all_a, all_b))


def loss_of_equal(series: int, times: int) -> float:
    """The loss if all tokens of all series are equal: what a collapsed encoder has."""
    scales = []
    while times > 1:
        scales.append(math.log(2 * series - 1) / 2 + math.log(2 * times - 1) / 2)
        times //= 2
    return sum([*scales, math.log(2 * series - 1) / 2]) / (len(scales) + 1)


def _contrast(a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, offset: int) -> Tensor:
    """Cross entropy [K, n] of finding b_i from a_i and a_i from b_i, [K, n, D] among [K, m, D], in each of K groups; their mean."""
    groups, count, _ = a.shape
    target = torch.arange(offset, offset + count, device=a.device)
    itself = torch.zeros(count, all_a.shape[1], dtype=torch.bool, device=a.device).scatter_(1, target[:, None], True)
    costs = []
    for x, own, other in ((a, all_a, all_b), (b, all_b, all_a)):
        logits = torch.cat(
            [x @ other.transpose(1, 2), (x @ own.transpose(1, 2)).masked_fill(itself, -torch.inf)], 2
        )  # [K, n, 2m]
        costs.append(F.cross_entropy(logits.flatten(0, 1), target.repeat(groups), reduction="none"))
    both: Tensor = costs[0] + costs[1]
    return both.view(groups, count) / 2


def _halved(x: Tensor) -> Tensor:
    """Maximum of each two neighbours in time, [n, T, D] -> [n, T // 2, D]; an odd last one is left out."""
    pooled: Tensor = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).amax(2)
    return pooled
