"""Pairwise sigmoid loss between two sets of embeddings: the loss of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import positives


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    all_b: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Each pair of an a and a b is a question of its own: do they belong together? Summed over candidates, mean over rows.

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), algorithm 1. Nothing is normalised over
    the batch, so each process needs its own rows a and all b. Slow loop, over the rows of one process that sees them all::

        def loop(a, b, scale, bias):
            G, loss = len(a), 0.0
            for i in range(G):
                for j in range(G):
                    logit = scale * dot(a[i], b[j]) + bias
                    loss += log(1 + exp(-logit if i == j else logit))
            return loss / G

    Args:
        a: [B, E] unit-norm rows of this process, float32 or float64.
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines; a tensor [] where it is learned. The paper starts at 10.
        bias: added to the logits, likewise. The paper starts at -10, against the many pairs that do not belong together.
        all_b: [G, E] rows of all processes (gathered with gradient); None: `b` is all there is.
        offset: where this process' rows start among all of them, rank * B.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch.

    Raises:
        ValueError: shapes or offset do not fit.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    all_b = b if all_b is None else all_b
    target = positives(a, all_b, offset)
    logits = scale * a @ all_b.T + bias
    sign = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
    return -F.logsigmoid(sign * logits).sum(1).mean()
