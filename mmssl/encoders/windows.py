"""Long sounds in evaluation: several windows of each, and the mean of their features."""

from __future__ import annotations

from torch import Tensor

from mmssl.core.encoder import Encoder, Features


def encode_windows(encoder: Encoder, x: Tensor) -> Features:
    """Pooled features [B, D] of B sounds in n windows, the mean over the windows; no tokens, since windows may overlap.

    Args:
        encoder: of single windows [B, C, samples].
        x: [B, n, C, samples].
    """
    each = encoder(x.flatten(0, 1), pooled_only=True).pooled
    return Features(each.reshape(x.shape[0], x.shape[1], -1).mean(1))
