"""Pairwise sigmoid loss (binary cross entropy of all pairs) between two sets of embeddings: the loss of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import check_candidates, left_out_negatives, over_present, positive_indices


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
    present: Tensor | None = None,
    ids: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss: binary cross entropy of each pair (a_i, b_j), positive if i = j; summed over candidates, mean over rows.

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), algorithm 1. Nothing is normalised over
    the batch, so each process needs its own rows a and all b. Slow loop, over the rows of one process that sees them all; samples
    that are not present take no part, and pairs of different samples with an id in common are left out::

        def loop(a, b, scale, bias, present, ids):
            there = [i for i in range(len(a)) if present[i]]
            loss = 0.0
            for i in there:
                for j in there:
                    logit = scale * dot(a[i], b[j]) + bias
                    if i == j or all(x != y for x, y in zip(ids[i], ids[j])):
                        loss += log(1 + exp(-logit if i == j else logit))
            return loss / max(1, len(there))

    Args:
        a: [B, E] unit-norm rows of this process, float32 or float64.
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines; a tensor [] where it is learned. The paper starts at 10.
        bias: added to the logits; a tensor [] where it is learned. The paper starts at -10, because most pairs are negatives.
        all_b: [G, E] rows of all processes (gathered with gradient); None: one process, all rows are in `b`.
        offset: where this process' rows start among all of them, rank * B.
        present: [G] bool, which samples of all processes take part; None: all.
        ids: [G] or [G, k] integers of all processes; samples that agree in any of the k are no negatives of each other.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch, the mean over samples that are present.

    Raises:
        ValueError: shapes, offset, present or ids do not match.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    all_b = b if all_b is None else all_b
    target = positive_indices(a, all_b, offset)
    out = left_out_negatives(target, len(all_b), present, check_candidates(len(all_b), present, ids))
    logits = scale * a @ all_b.T + bias
    sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
    terms = F.logsigmoid(sign * logits)
    if out is not None:
        terms = terms.masked_fill(out, 0)
    if present is not None:
        terms = terms * present[target, None]
    return over_present(-terms.sum(1).mean(), present)
