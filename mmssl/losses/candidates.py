"""What losses over candidates share: where the positives of this process' rows stand, and how often they are ranked first."""

from __future__ import annotations

import torch
from torch import Tensor


def positives(rows: Tensor, candidates: Tensor, offset: int) -> Tensor:
    """[B] int64: row i of `rows` [B, E] belongs to candidate `offset + i` of `candidates` [G, E].

    Raises:
        ValueError: the shapes do not fit, or some row would have no positive.
    """
    if rows.ndim != 2 or candidates.ndim != 2 or rows.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"got rows {tuple(rows.shape)} and candidates {tuple(candidates.shape)}, wanted [B, E] and [G, E]"
        )
    if not 0 <= offset <= len(candidates) - len(rows):
        raise ValueError(
            f"got offset {offset} for {len(rows)} rows among {len(candidates)} candidates: row i belongs to candidate "
            "offset + i, so give rank * B and the candidates of all processes"
        )
    return torch.arange(offset, offset + len(rows), device=rows.device)


@torch.no_grad()
def first_rate(logits: Tensor, target: Tensor) -> Tensor:
    """Share of rows of `logits` [B, M] whose `target` [B] scores highest, in [0, 1]; a tie among n counts 1/n.

    With the tie rule a collapsed model, whose candidates all score alike, gets 1/M and not whatever argmax makes of rounding.
    """
    best = logits == logits.amax(1, keepdim=True)
    hit = best.gather(1, target[:, None]).squeeze(1)
    return (hit / best.sum(1)).mean()
