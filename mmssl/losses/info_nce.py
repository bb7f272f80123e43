"""Symmetric InfoNCE (contrastive cross entropy) between two sets of embeddings: the loss of CLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import check_candidates, left_out_negatives, over_present, positive_indices
from mmssl.losses.tiles import nearest_rate


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    offset: int = 0,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    further_b: Tensor | None = None,
    further_a: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: mean cross entropy of finding b_i among all b from a_i, and a_i among all a from b_i.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), figure 3.
    Slow loop, over the rows of one process that has them all; samples that are not present are neither rows nor
    candidates, and samples with an id in common are no negatives of each other::

        def loop(a, b, scale, present, ids):
            there = [i for i in range(len(a)) if present[i]]
            loss = 0.0
            for i in there:
                others = [j for j in there if j == i or all(x != y for x, y in zip(ids[i], ids[j]))]
                a_to_b = sum(exp(scale * (dot(a[i], b[j]) - dot(a[i], b[i]))) for j in others)
                b_to_a = sum(exp(scale * (dot(b[i], a[j]) - dot(b[i], a[i]))) for j in others)
                loss += (log(a_to_b) + log(b_to_a)) / 2
            return loss / max(1, len(there))

    Args:
        a: [B, E] unit-norm rows of this process, float32 or float64.
        b: [B, E] unit-norm, b_i belongs to a_i.
        scale: multiplier of the cosines, the inverse of the temperature; a tensor [] where it is learned.
        all_a: [G, E] rows of all processes (gathered with gradient); None: one process, all rows are in `a`.
        all_b: [G, E] the same of b.
        offset: where this process' rows start among all of them, rank * B.
        present: [G] bool, which samples of all processes take part; None: all.
        ids: [G] or [G, k] integers of all processes; samples that agree in any of the k are no negatives of each other. None:
            every other sample is a negative.
        further_b: [B] log-sum-exp of the logits of each a_i with candidates beside those in b (`HardNegatives`); None: none.
        further_a: [B] the same of each b_i.

    Returns:
        [] this process' share: the mean over processes is the loss of the global batch, the mean over samples that are present.

    Raises:
        ValueError: shapes, offset, present or ids do not match.
    """
    all_a, all_b, target = _candidates(a, b, all_a, all_b, offset)
    out = left_out_negatives(target, len(all_b), present, check_candidates(len(all_b), present, ids))
    a_to_b = scale * a @ all_b.T
    # With one process both directions use the same products.
    b_to_a = a_to_b.T if all_a is a and all_b is b else scale * b @ all_a.T
    if out is not None:
        # An absent row has its positive as the only candidate: its loss is 0, without gradient.
        a_to_b, b_to_a = a_to_b.masked_fill(out, -torch.inf), b_to_a.masked_fill(out, -torch.inf)
    if further_b is not None:
        a_to_b = torch.cat([a_to_b, further_b[:, None]], 1)
    if further_a is not None:
        b_to_a = torch.cat([b_to_a, further_a[:, None]], 1)
    loss = (F.cross_entropy(a_to_b, target) + F.cross_entropy(b_to_a, target)) / 2
    return over_present(loss, present)


@torch.no_grad()
def info_nce_accuracy(
    a: Tensor,
    b: Tensor,
    *,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    offset: int = 0,
    present: Tensor | None = None,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In-batch accuracy both ways, each [] in [0, 1]: how often b_i is nearest to a_i, and a_i to b_i, among the loss' candidates.

    A tie among n counts 1/n. This process' share, as with the loss; 0 if no sample is present.
    """
    all_a, all_b, target = _candidates(a, b, all_a, all_b, offset)
    ids = check_candidates(len(all_b), present, ids)
    return nearest_rate(a, all_b, target, present, ids), nearest_rate(b, all_a, target, present, ids)


def _candidates(
    a: Tensor, b: Tensor, all_a: Tensor | None, all_b: Tensor | None, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The [G, E] candidates of b and of a, and the [B] positives of both."""
    if a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: b_i belongs to a_i"
        )
    all_a = a if all_a is None else all_a
    all_b = b if all_b is None else all_b
    if len(all_a) != len(all_b):
        raise ValueError(
            f"got {len(all_a)} candidates a and {len(all_b)} candidates b, wanted equal numbers; give all_a and all_b"
        )
    return all_a, all_b, positive_indices(a, all_b, offset)
