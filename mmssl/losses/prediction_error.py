"""Squared error of predicted embeddings with a stop-gradient on the target, the loss of predictive pairs."""

from __future__ import annotations

from torch import Tensor

from mmssl.core import distributed


def prediction_error(prediction: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Mean squared error of predicted embeddings, over features and present samples; stop-gradient on the target.

    Kuhn et al. 2026, "LeVLJEPA" (arXiv:2607.00784), one direction of the cross-modal prediction. For standard normal targets a
    prediction that knows nothing has 1, and collapsed embeddings reach 0. Slow loop::

        def loop(prediction, target, present):
            errors = []
            for p, z, here in zip(prediction, target, present):
                if here:
                    errors.append(mean([(float(p[e]) - float(z[e])) ** 2 for e in range(len(p))]))
            return sum(errors) / max(1, len(errors))

    Args:
        prediction: [B, E] of this process, float32 or float64.
        target: [B, E] of the same samples; detached here.
        present: [B] bool, which samples take part; others have no gradient.

    Returns:
        [] this process' share of the mean over the present samples of all processes; 0, with a graph, if there are none.

    Raises:
        ValueError: shapes differ.
    """
    if prediction.shape != target.shape or present.shape != prediction.shape[:1]:
        raise ValueError(
            f"got predictions {list(prediction.shape)}, targets {list(target.shape)} and present {list(present.shape)}, "
            "wanted [B, E], [B, E] and [B]"
        )
    errors = (prediction - target.detach()).square().mean(-1).masked_fill(~present, 0)
    samples = distributed.total_detached(present.sum()).clamp(min=1)
    return errors.sum() * distributed.world_size() / samples
