"""What losses over candidates share: where positives stand, who is no negative, and how often positives are ranked first."""

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


def check_samples(candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """The ids as [G, k], checked together with `present` [G].

    Raises:
        ValueError: not one entry for each candidate, or not booleans and integers.
    """
    if present is not None and (present.shape != (candidates,) or present.dtype != torch.bool):
        raise ValueError(
            f"got present {tuple(present.shape)} of {present.dtype}, wanted [{candidates}] of bool: one for each candidate"
        )
    if ids is None:
        return None
    if ids.ndim not in (1, 2) or len(ids) != candidates:
        raise ValueError(
            f"got ids {tuple(ids.shape)}, wanted [{candidates}] or [{candidates}, k]: a row for each candidate"
        )
    if ids.is_floating_point():
        raise ValueError(f"got ids of {ids.dtype}, wanted integers: they are compared for equality")
    return ids if ids.ndim == 2 else ids[:, None]


def same(ids: Tensor, others: Tensor) -> Tensor:
    """[n, m] bool: whether two samples agree in any of their k ids, [n, k] and [m, k]."""
    found = ids[:, None, 0] == others[:, 0]
    for column in range(1, ids.shape[1]):
        found |= ids[:, None, column] == others[:, column]
    return found


def no_negatives(target: Tensor, candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """[B, G] bool, True where a candidate is no negative of a row whose positive is `target` [B]; None: all are.

    These are all of an absent row, the absent candidates, and those of an id that the row has too. Positives are False.

    Args:
        target: of each row.
        candidates: G.
        present: [G] bool. ids: [G, k], of all candidates; a row's own are those of its positive.
    """
    if present is None and ids is None:
        return None
    out = torch.zeros(len(target), candidates, dtype=torch.bool, device=target.device)
    if present is not None:
        out |= ~(present[target, None] & present)
    if ids is not None:
        out |= same(ids[target], ids)
    return out.scatter_(1, target[:, None], False)


def over_present(mean: Tensor, present: Tensor | None) -> Tensor:
    """Turn a mean over all rows, to which absent ones add 0, into one over those that are present [G]; 0 if there are none."""
    if present is None:
        return mean
    return mean * (len(present) / present.sum().clamp(min=1).double()).to(mean.dtype)


@torch.no_grad()
def first_hits(logits: Tensor, target: Tensor) -> Tensor:
    """[B]: 1 for rows of `logits` [B, M] whose `target` [B] scores highest, else 0; a tie among n counts 1/n.

    With the tie rule a collapsed model, whose candidates all score alike, gets 1/M and not whatever argmax makes of rounding.
    """
    best = logits == logits.amax(1, keepdim=True)
    hit = best.gather(1, target[:, None]).squeeze(1)
    return hit / best.sum(1)


def first_rate(logits: Tensor, target: Tensor) -> Tensor:
    """The mean of `first_hits`, in [0, 1]."""
    return first_hits(logits, target).mean()
