"""Attention kernels: of batches of equal lengths, and of texts of any length that lie one after the other."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 128
"""Keys up to which fused attention is slower backward in bfloat16 on the CPU: twice at 50 keys, eight times at 13."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool) -> Tensor:
    """Scaled dot-product attention of q, k, v [B, heads, T, D / heads], by the fastest kernel."""
    short = k.shape[-2] <= SHORT and q.dtype is torch.bfloat16 and q.device.type == "cpu" and q.requires_grad
    with sdpa_kernel(SDPBackend.MATH) if short and not torch.compiler.is_compiling() else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def attend_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    causal: bool,
) -> Tensor:
    """Attention inside each of some texts that lie one after the other: [N, heads, D / heads] -> the same shape.

    Args:
        q, k, v: of float16 or bfloat16 on CUDA; N of q may differ from that of k and v.
        bounds: of queries and of keys, [texts + 1] int32: text i has rows bounds[i] ... bounds[i + 1] - 1.
        longest: largest number of queries and of keys of a text.
        causal: each query sees the keys of its text up to its own place.
    """
    from torch.nn.attention import varlen  # imports torch._dynamo

    return varlen.varlen_attn(q, k, v, *bounds, *longest, **_causality(causal))  # type: ignore[return-value]


def takes_ragged(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether `attend_ragged` works on this device, with heads of this size and weights of this type (autocast has its own)."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    computed = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
    return computed in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256


def _causality(causal: bool) -> dict[str, Any]:
    """The argument of `varlen_attn`, whose name changed between releases of torch."""
    if _names_causality():
        return {"is_causal": causal}
    return {"window_size": (-1, 0) if causal else (-1, -1)}


@cache
def _names_causality() -> bool:
    from torch.nn.attention import varlen

    return "is_causal" in inspect.signature(varlen.varlen_attn).parameters
