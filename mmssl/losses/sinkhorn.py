"""Sinkhorn-Knopp: soft assignments of rows to prototypes that use all prototypes equally, over the rows of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.core import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp: balanced soft assignments (codes) of the global batch to K prototypes; no gradient.

    Cuturi 2013 (arXiv:1306.0895) as in SwAV (Caron et al. 2020, arXiv:2006.09882, listing 1). In logarithms, so that no score is
    too large. After few iterations rows sum to 1 exactly and columns nearly to N / K. Slow loop, over the rows of one process that
    sees them all::

        def loop(scores, temperature, iterations):
            N, K = len(scores), len(scores[0])
            Q = [[exp(float(s) / temperature) for s in row] for row in scores]
            for _ in range(iterations):
                columns = [sum(Q[i][k] for i in range(N)) for k in range(K)]
                Q = [[Q[i][k] / columns[k] / K for k in range(K)] for i in range(N)]
                rows = [sum(row) for row in Q]
                Q = [[Q[i][k] / rows[i] / N for k in range(K)] for i in range(N)]
            return [[N * q for q in row] for row in Q]

    Args:
        scores: [n, K] of this process' rows; processes may have different numbers of rows, also none.
        temperature: epsilon, divisor of the scores; the smaller, the harder the assignments.
        iterations: how often columns and rows are normalised. SwAV: 3.

    Returns:
        [n, K] probabilities of this process' rows.

    Raises:
        ValueError: shape or number of iterations is not as above.
    """
    if scores.ndim != 2 or iterations < 1:
        raise ValueError(f"got scores {list(scores.shape)} and {iterations} iterations, wanted [n, K] and at least 1")
    logs = scores.detach() / temperature
    for _ in range(iterations):
        # Constant factors of all columns, 1 / K, and of all rows, 1 / N, cancel in the normalisation of rows.
        columns = distributed.gather_detached(logs.logsumexp(0, keepdim=True)).logsumexp(0)
        logs = (logs - columns).log_softmax(1)
    return logs.exp()
