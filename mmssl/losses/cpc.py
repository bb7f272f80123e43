"""Contrastive predictive coding (CPC): InfoNCE of later features, predicted from a summary of the earlier ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed


def cpc(predictions: Tensor, everyone: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
    """InfoNCE of predicted features among those of all times of all samples; the score is the mean product over features.

    van den Oord et al. 2018 (arXiv:1807.03748), equation 4; all features of the batch are candidates, so nothing is drawn. Slow
    loop, on one process::

        def loop(predictions, everyone):
            K, B, S, D = predictions.shape
            T, total = everyone.shape[1], 0.0
            rows = [everyone[i, u] for i in range(B) for u in range(T)]
            for k in range(K):
                for b in range(B):
                    for t in range(S):
                        scores = [dot(predictions[k, b, t], row) / D for row in rows]
                        total += log(sum(exp(s) for s in scores)) - scores[T * b + t + k + 1]
            return total / (K * B * S)

    Args:
        predictions: [K, n, S, D] float32 or float64: entry k of time t is of time t + k + 1.
        everyone: [N, T, D] features of all samples of all processes, with gradient; T is S + K.
        offset: number of the first of the n samples of this process among them.

    Returns:
        [] this process' share of the mean over steps, samples and times, and the accuracy of the first step, [n] (detached).

    Raises:
        ValueError: the shapes do not fit.
    """
    K, n, S, D = predictions.shape
    T = everyone.shape[1]
    if everyone.shape[2:] != (D,) or S + K != T:
        raise ValueError(
            f"got predictions {list(predictions.shape)} of features {list(everyone.shape)}, wanted [K, n, S, D] and [N, S + K, D]"
        )
    if not len(everyone):
        return 0 * predictions.sum(), predictions.new_zeros(0)
    scores = predictions @ (everyone.flatten(0, 1).T / D)  # [K, n, S, N * T]
    device = scores.device
    first = T * (offset + torch.arange(n, device=device))[:, None] + torch.arange(S, device=device)  # [n, S]
    right = first + 1 + torch.arange(K, device=device)[:, None, None]  # [K, n, S]
    costs = F.cross_entropy(scores.flatten(0, 2), right.flatten(), reduction="none").view(K, n, S)
    hits = (scores[0].detach().argmax(-1) == right[0]).to(scores.dtype)
    return distributed.mean(costs.mean((0, 2))), hits.mean(1)
