"""Zero-shot classification with a cache of a few training samples, without training (Tip-Adapter, Zhang et al. 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.ranking import Predictions, ranks_of_classes
from mmssl.evaluation.tiles import exact_products

ZERO_SHOT_SCALE = 100.0
"""Of the cosines to prompts beside the cache, as in Tip-Adapter's experiments, whatever the model's logit scale."""


def cache_scores(
    embeddings: Tensor, classifier: Tensor, cached: Tensor, numbers: Tensor, alpha: float, beta: float
) -> Tensor:
    """Class scores [n, K]: 100 cos(x, prompts of k) + alpha * sum over cached samples s of class k of exp(-beta (1 - cos(x, s))).

    Args:
        embeddings: [n, E] float32, of norm 1. classifier: [K, E], class weights of prompts.
        cached: [m, E], embeddings of the training samples. numbers: [m] int64, their classes in 0 ... K-1.
        alpha: weight of the cache. beta: how fast it falls with the distance.
    """
    with exact_products():
        near = (-beta * (1 - embeddings @ cached.T)).exp()
        votes = near @ F.one_hot(numbers, len(classifier)).float()
        return ZERO_SHOT_SCALE * (embeddings @ classifier.T) + alpha * votes


def cache_predictions(
    embeddings: Tensor,
    labels: Tensor,
    classifier: Tensor,
    cached: Tensor,
    numbers: Tensor,
    alpha: float,
    beta: float,
) -> Predictions:
    """What `cache_scores` predict for samples with these labels [n], tile by tile; ties as in `class_ranks`."""
    size = max(1, 2**24 // max(len(cached), len(classifier)))
    parts = [
        ranks_of_classes(cache_scores(rows, classifier, cached, numbers, alpha, beta), own)
        for rows, own in zip(embeddings.split(size), labels.split(size), strict=True)  # type: ignore[no-untyped-call]
    ]
    return Predictions.joined(parts)
