"""Pairwise sigmoid loss between two sets of embeddings: the loss of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import check_samples, no_negatives, over_present, positives


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
    """Each pair of an a and a b is a question of its own: do they belong together? Summed over candidates, mean over rows.

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), algorithm 1. Nothing is normalised over
    the batch, so each process needs its own rows a and all b. Slow loop, over the rows of one process that sees them all; samples
    that are not present take no part, and between samples with an id in common nothing is asked::

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
        bias: added to the logits, likewise. The paper starts at -10, against the many pairs that do not belong together.
        all_b: [G, E] rows of all processes (gathered with gradient); None: `b` is all there is.
        offset: where this process' rows start among all of them, rank * B.
        present: [G] bool, which samples of all processes take part; None: all.
        ids: [G] or [G, k] integers of all processes; samples that agree in any of the k are no negatives of each other.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch, the mean over samples that are present.

    Raises:
        ValueError: shapes, offset, present or ids do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    all_b = b if all_b is None else all_b
    target = positives(a, all_b, offset)
    out = no_negatives(target, len(all_b), present, check_samples(len(all_b), present, ids))
    logits = scale * a @ all_b.T + bias
    sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
    terms = F.logsigmoid(sign * logits)
    if out is not None:
        terms = terms.masked_fill(out, 0)
    if present is not None:
        terms = terms * present[target, None]
    return over_present(-terms.sum(1).mean(), present)
