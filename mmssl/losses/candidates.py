"""Positives and negatives of losses over candidates: indices of positives, masks of negatives, in-batch accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def positive_indices(rows: Tensor, candidates: Tensor, offset: int) -> Tensor:
    """Index of the positive of each row, [B] int64: `offset + i` for row i of `rows` [B, E] among `candidates` [G, E].

    Raises:
        ValueError: the shapes do not match, or some row would have no positive.
    """
    if rows.ndim != 2 or candidates.ndim != 2 or rows.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"got rows {tuple(rows.shape)} and candidates {tuple(candidates.shape)}, wanted [B, E] and [G, E]"
        )
    if not 0 <= offset <= len(candidates) - len(rows):
        raise ValueError(
            f"got offset {offset} for {len(rows)} rows among {len(candidates)} candidates: the positive of row i is candidate "
            "offset + i; give rank * B and the candidates of all processes"
        )
    return torch.arange(offset, offset + len(rows), device=rows.device)


def check_candidates(candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """Check `present` [G] and `ids` [G] or [G, k]; returns the ids as [G, k].

    Raises:
        ValueError: there is not one entry for each candidate, or they are not booleans and integers.
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


def same_ids(ids: Tensor, others: Tensor) -> Tensor:
    """Mask of equal samples, [n, m] bool: True where any of the k ids agree, `ids` [n, k] and `others` [m, k]."""
    found = ids[:, None, 0] == others[:, 0]
    for column in range(1, ids.shape[1]):
        found |= ids[:, None, column] == others[:, column]
    return found


def left_out_negatives(target: Tensor, candidates: int, present: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """Mask of left-out negatives, [B, G] bool, True where a candidate is no negative of a row; None: none are left out.

    Left out are all candidates of an absent row, absent candidates, and those that share an id with the row. Positives are False.

    Args:
        target: [B], index of the positive of each row.
        candidates: G, number of candidates.
        present: [G] bool. ids: [G, k], of all candidates; a row's own are those of its positive.
    """
    if present is None and ids is None:
        return None
    out = torch.zeros(len(target), candidates, dtype=torch.bool, device=target.device)
    if present is not None:
        out |= ~(present[target, None] & present)
    if ids is not None:
        out |= same_ids(ids[target], ids)
    return out.scatter_(1, target[:, None], False)


def over_present(mean: Tensor, present: Tensor | None) -> Tensor:
    """Rescale a mean over all rows (absent ones add 0) to a mean over present samples; `present` [G]; 0 if there are none."""
    if present is None:
        return mean
    return mean * (len(present) / present.sum().clamp(min=1).double()).to(mean.dtype)


@torch.no_grad()
def first_hits(logits: Tensor, target: Tensor) -> Tensor:
    """Top-1 hits [B]: 1 for rows of `logits` [B, M] whose `target` [B] scores highest, else 0; a tie among n counts 1/n.

    With this tie rule a collapsed model, whose candidates all have equal scores, gets 1/M; an argmax would depend on rounding.
    """
    if logits.shape[1] == 0:
        return logits.new_zeros(len(logits))
    best = logits == logits.amax(1, keepdim=True)
    hit = best.gather(1, target[:, None]).squeeze(1)
    return hit / best.sum(1)
