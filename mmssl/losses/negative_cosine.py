"""Negative cosine similarity with a stop-gradient on the target, the loss of SimSiam."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine similarity of predictions and targets, mean over samples; stop-gradient on the target.

    Chen and He 2021, "Exploring Simple Siamese Representation Learning" (arXiv:2011.10566), equations 1 and 3; BYOL's loss
    (arXiv:2006.07733) of one view is 2 + 2 times it. The optimum is -1, and collapsed embeddings reach it too. Slow loop::

        def loop(prediction, target):
            cosines = [dot(p, z) / (dot(p, p) * dot(z, z)) ** 0.5 for p, z in zip(prediction, target)]
            return -mean(cosines)

    Args:
        prediction: [B, E] of one view, of any length, float32 or float64.
        target: [B, E] of the other view of the same samples; detached here.

    Returns:
        [] this process' share of the mean over the samples of all processes, in [-1, 1] on one process.

    Raises:
        ValueError: shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"got predictions {list(prediction.shape)} and targets {list(target.shape)}, wanted equal shapes [B, E]"
        )
    return -distributed.mean(F.cosine_similarity(prediction, target.detach(), dim=-1))
