"""Monitors of named latents, for the log: the spread of features, which shows a collapse, and their norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

SPREAD, NORM = "spread", "norm"
"""Names of the monitors, before "/" and the name of the features."""
LEAST_DEVIATION = 0.1
"""Standard deviation below which embeddings whose loss wants 1 have collapsed."""


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Standard deviation of normalised embeddings over the global batch, mean over features, times sqrt(D); 0 at collapse.

    Chen and He 2021 (arXiv:2011.10566), figure 2. Near 1 for embeddings all over the sphere. Rows of zeros have no direction and
    are left out: they stand for absent samples. A collective: every process must call it.

    Args:
        x: [B, D] embeddings of this process, of any length.

    Returns:
        [] from 0 to 1, the same on every process.
    """
    unit = F.normalize(x.double(), dim=-1)
    deviations = _deviations(unit, (unit != 0).any(-1).sum().double())
    return (deviations.mean() * math.sqrt(x.shape[-1])).to(x.dtype)


@torch.no_grad()
def deviation(x: Tensor) -> Tensor:
    """Standard deviation of each feature of [B, D] over the global batch, mean over features. A collective, see `spread`."""
    x64 = x.double()
    return _deviations(x64, x64.new_tensor(float(len(x)))).mean().to(x.dtype)


def _deviations(x: Tensor, count: Tensor) -> Tensor:
    """Standard deviation [D] of each feature over the rows of all processes, of which `count` [] of this process' [B, D] count."""
    sums = distributed.total_detached(torch.cat([x.sum(0), x.square().sum(0), count[None]]))
    mean, square = (sums[:-1] / sums[-1].clamp_min(1)).chunk(2)
    deviations: Tensor = (square - mean.square()).clamp(min=0).sqrt()
    return deviations


@torch.no_grad()
def mean_norm(x: Tensor) -> Tensor:
    """Mean length of the rows of [B, D] over the global batch, rows of zeros left out. A collective, see `spread`."""
    lengths = x.double().norm(dim=-1)
    sums = distributed.total_detached(torch.stack([lengths.sum(), (lengths > 0).sum().double()]))
    mean: Tensor = sums[0] / sums[1].clamp_min(1)
    return mean.to(x.dtype)


def monitor(latents: Mapping[str, Tensor], monitored: Mapping[str, str]) -> dict[str, Tensor]:
    """Spread and mean norm of latents, as "spread/<name>" and "norm/<name>". A collective, see `spread`.

    Args:
        latents: of this process, [B, D] each.
        monitored: name for the log -> name of the latent, see `Objective.monitored`.
    """
    found = {f"{SPREAD}/{name}": spread(latents[latent].float()) for name, latent in monitored.items()}
    return found | {f"{NORM}/{name}": mean_norm(latents[latent].float()) for name, latent in monitored.items()}
