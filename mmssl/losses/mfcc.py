"""Mel-frequency cepstral coefficients (MFCC) of tokens over time: rows that HuBERT clusters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def mfcc_of_tokens(x: Tensor, patch: Sequence[int], coefficients: int = 13) -> Tensor:
    """MFCC of log-mel spectrograms with their first and second differences, mean over the frames of each token, [B, T, 3N].

    Hsu et al. 2021, "HuBERT" (arXiv:2106.07447), section 4.2: 13 coefficients and differences, 39 in all. Coefficients are the
    orthonormal DCT-II over the filters; differences are Kaldi's, of five frames. In the type of `x`, also
    under autocast.

    Args:
        x: [B, planes, filters, frames]; planes, as of stereo sounds, are averaged.
        patch: filters and frames of a token, which has all filters.
        coefficients: N, at most the filters.

    Raises:
        ValueError: tokens do not have all filters, or there are fewer filters than coefficients.
    """
    from torchaudio.functional import compute_deltas, create_dct

    filters = x.shape[2] if x.ndim == 4 else 0
    if len(patch) != 2 or patch[0] != filters or coefficients > filters:
        raise ValueError(
            f"got an input of shape {list(x.shape)} in tokens of {list(patch)}, wanted spectrograms [B, planes, filters, frames] "
            f"of {coefficients} filters or more, in tokens of all filters: set the encoder's patch_size to [filters, frames]"
        )
    with torch.autocast(x.device.type, enabled=False):
        found = torch.einsum("bft,fn->bnt", x.mean(1), create_dct(coefficients, filters, "ortho").to(x))
        first = compute_deltas(found)
        everything = torch.cat([found, first, compute_deltas(first)], 1)
    rows: Tensor = everything.unflatten(2, (-1, patch[1])).mean(-1).transpose(1, 2)
    return rows
