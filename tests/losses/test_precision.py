"""What is compared with predictions is computed in float32, also in a step that computes in bfloat16 (autocast)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmssl.losses.colours import rgb_to_lab
from mmssl.losses.kmeans import nearest_centroid
from mmssl.losses.latent_prediction import masked_sums
from mmssl.losses.mfcc import mfcc_of_tokens
from mmssl.objectives.parts.quantizers import RandomProjectionConfig

RANDOM = torch.Generator().manual_seed(0)
ROWS, MASK = torch.randn(4, 49, 96, generator=RANDOM), torch.rand(4, 49, generator=RANDOM) < 0.5
CLOSE = ROWS[0] + 0.01 * torch.randn(49, 96, generator=RANDOM)  # which of two is the nearest, bfloat16 does not tell
CENTROIDS = torch.cat([CLOSE, CLOSE + 0.001 * torch.randn(49, 96, generator=RANDOM)])
PICTURES, SOUNDS = torch.rand(2, 3, 8, 8, generator=RANDOM), torch.randn(2, 1, 40, 32, generator=RANDOM)
PROJECTION = RandomProjectionConfig(codes=1024, embedding=16).build(96)
MADE: dict[str, Callable[[], Tensor]] = {
    "sums of tokens, for their spread": lambda: masked_sums(ROWS, MASK),
    "colours": lambda: rgb_to_lab(PICTURES),
    "codes of k-means": lambda: nearest_centroid(ROWS, CENTROIDS),
    "codes of a random projection": lambda: PROJECTION(ROWS.repeat(40, 1, 1) + torch.arange(160)[:, None, None] / 10),
    "cepstral coefficients": lambda: mfcc_of_tokens(SOUNDS, (40, 2)),
}


@pytest.mark.parametrize("name", MADE)
def test_targets_do_not_depend_on_the_precision_of_the_step(name: str) -> None:
    expected = MADE[name]()
    with torch.autocast("cpu", torch.bfloat16):
        found = MADE[name]()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
