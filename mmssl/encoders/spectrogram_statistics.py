"""Statistics of log-mel spectrograms over sounds, by which a front-end normalises them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mmssl.encoders.spectrogram import FrontEnd


@torch.no_grad()
def measure_statistics(front_end: FrontEnd, waves: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of a front-end's output over batches [B, C, samples]: the values for `mean` and `std`.

    The front-end must have mean 0 and std 1, and no `frames`. Every value has the same weight; sums are in float64.

    Raises:
        ValueError: there is no batch.
    """
    count, total, squares = 0, 0.0, 0.0
    for wave in waves:
        x = front_end(wave).double()
        count, total, squares = count + x.numel(), total + x.sum().item(), squares + x.square().sum().item()
    if count == 0:
        raise ValueError("got no batch of sounds, wanted at least one")
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean**2))
