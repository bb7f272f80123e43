"""Features of long sounds in evaluation: the mean over several windows of each."""

from __future__ import annotations

from torch import Tensor

from mmssl.core.encoder import Encoder, Features


def encode_windows(encoder: Encoder, x: Tensor) -> Features:
    """Mean over n windows of the pooled features of B sounds, [B, D]; no tokens, because windows may overlap.

    Args:
        encoder: encodes single windows [B, C, samples].
        x: [B, n, C, samples].
    """
    each = encoder(x.flatten(0, 1), pooled_only=True).pooled
    return Features(each.reshape(x.shape[0], x.shape[1], -1).mean(1))
