"""Text masking: train on fewer tokens of each text, which is cheaper (CLIPA, arXiv:2305.07017, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TokenMasking = Literal["truncate", "random", "block"]


def mask_tokens(ids: Tensor, count: int, how: TokenMasking) -> Tensor:
    """Shorten token ids to `count` tokens by dropping words; shorter texts stay as they are.

    The first token and the end-of-text token (the largest id) always stay. The kept tokens move together, so that positions are
    those of a shorter text. Draws from torch's generator of the device.

    Args:
        ids: [B, T].
        count: largest number of tokens of a text, first and end included; at least 3.
        how: which words stay: the first ones, random ones in their order, or a random run of neighbours.

    Returns:
        [B, count], or `ids` where T is no larger.
    """
    if ids.shape[1] <= count:
        return ids
    end = ids.argmax(dim=1, keepdim=True)
    words, wanted = end - 1, count - 2
    if how == "random":
        noise = torch.rand(ids.shape, device=ids.device)
        places = torch.arange(ids.shape[1], device=ids.device)
        noise = noise.masked_fill((places < 1) | (places >= end), 2.0)
        kept = noise.topk(wanted, dim=1, largest=False).indices.sort(dim=1).values
    else:
        kept = 1 + torch.arange(wanted, device=ids.device).expand(len(ids), -1)
        if how == "block":
            kept = kept + (torch.rand(end.shape, device=ids.device) * (words - wanted + 1).clamp(min=1)).long()
    chosen = ids.gather(1, torch.cat([torch.zeros_like(end), kept, end], dim=1))
    return torch.where(words <= wanted, ids[:, :count], chosen)
