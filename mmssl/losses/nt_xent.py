"""NT-Xent, the contrastive loss of SimCLR: two views of each sample, every other view of the batch is a negative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.candidates import first_hits, positive_indices
from mmssl.losses.views import check_two_views


def nt_xent(
    a: Tensor,
    b: Tensor,
    temperature: float,
    *,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """NT-Xent: cross entropy of finding the other view of a sample among all 2G-1 other views; mean over the 2B views.

    Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709), equation 1 and
    algorithm 1. It is not InfoNCE between a and b: the other samples' views of the *same* set are negatives too. Slow loop, over
    the rows of one process that sees them all::

        def loop(a, b, temperature):
            z, G, loss = [*a, *b], len(a), 0.0
            for i in range(2 * G):
                partner = (i + G) % (2 * G)
                similarity = [dot(z[i], z[k]) / temperature for k in range(2 * G)]
                others = sum(exp(similarity[k] - similarity[partner]) for k in range(2 * G) if k != i)
                loss += log(others)
            return loss / (2 * G)

    Args:
        a: [B, E] unit-norm first views of this process, float32 or float64.
        b: [B, E] unit-norm second views; b_i and a_i are of one sample.
        temperature: divisor of the cosines.
        all_a: [G, E] first views of all processes (gathered with gradient); None: one process, all rows are in `a`.
        all_b: [G, E] second views. Gather the two separately: concatenating them first would mix views and processes.
        offset: where this process' rows start among all of them, rank * B where processes have equal numbers of rows.

    Returns:
        [] the mean over this process' rows, 0 if there are none: the mean over processes is the loss of the global batch where they
        have equal numbers of rows.

    Raises:
        ValueError: shapes or offset do not match.
    """
    from_a, from_b, target = _logits(a, b, temperature, all_a, all_b, offset)
    costs = F.cross_entropy(from_a, target, reduction="sum") + F.cross_entropy(from_b, target, reduction="sum")
    return costs / (2 * max(len(a), 1))


@torch.no_grad()
def nt_xent_accuracy(
    a: Tensor, b: Tensor, *, all_a: Tensor | None = None, all_b: Tensor | None = None, offset: int = 0
) -> Tensor:
    """In-batch accuracy, [] in [0, 1]: how often the other view is the nearest of all 2G-1; a tie among n counts 1/n."""
    from_a, from_b, target = _logits(a, b, 1.0, all_a, all_b, offset)
    return (first_hits(from_a, target) + first_hits(from_b, target)).sum() / (2 * max(len(a), 1))


def _logits(
    a: Tensor, b: Tensor, temperature: float, all_a: Tensor | None, all_b: Tensor | None, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 2G] logits of first and of second views (the view itself is -inf), and the [B] positives of both."""
    check_two_views(a, b)
    all_a = a if all_a is None else all_a
    all_b = b if all_b is None else all_b
    if len(all_a) != len(all_b):
        raise ValueError(
            f"got {len(all_a)} candidates a and {len(all_b)} candidates b, wanted equal numbers; give all_a and all_b"
        )
    target = positive_indices(a, all_b, offset)
    itself = torch.zeros(len(a), len(all_a), dtype=torch.bool, device=a.device).scatter_(1, target[:, None], True)
    # The other set comes first, so that its positive has the same column in both directions.
    from_a = torch.cat([a @ all_b.T, (a @ all_a.T).masked_fill(itself, -torch.inf)], 1) / temperature
    from_b = torch.cat([b @ all_a.T, (b @ all_b.T).masked_fill(itself, -torch.inf)], 1) / temperature
    return from_a, from_b, target
