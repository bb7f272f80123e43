"""KoLeo: features of different samples spread out, by the distance of each to its nearest neighbour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

EPS = 1e-8


def koleo(x: Tensor, everyone: Tensor, offset: int = 0) -> Tensor:
    """Kozachenko-Leonenko regulariser: minus the mean logarithm of the distance of unit vectors to their nearest neighbour.

    Sablayrolles et al. 2019 (arXiv:1806.03198), as in DINOv2 (arXiv:2304.07193); there neighbours are those of one process. Slow
    loop, on one process::

        def loop(x):
            rows, total = [row / dot(row, row) ** 0.5 for row in x], 0.0
            for i, row in enumerate(rows):
                near = rows[max((k for k in range(len(rows)) if k != i), key=lambda k: dot(row, rows[k]))]
                apart = row - near + 1e-8
                total -= log(dot(apart, apart) ** 0.5 + 1e-8)
            return total / len(rows)

    Args:
        x: [n, D] features of this process, float32 or float64.
        everyone: [N, D] features of all processes, with gradient; fewer than two cost nothing.
        offset: number of the first row of `x` among them.

    Returns:
        [] this process' share of the mean over all rows.
    """
    if len(everyone) < 2:
        return 0 * distributed.mean(x.sum(1))
    rows, others = F.normalize(x, dim=-1), F.normalize(everyone, dim=-1)
    with torch.no_grad():
        cosines = rows @ others.T
        own = torch.arange(len(rows), device=x.device)
        cosines[own, own + offset] = -2
        nearest = cosines.argmax(1)
    apart = F.pairwise_distance(rows, others[nearest], eps=EPS)
    return distributed.mean(-(apart + EPS).log())
