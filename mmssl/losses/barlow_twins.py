"""Barlow Twins loss: squared distance of the cross-correlation matrix of two views from the identity."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmssl.core import distributed
from mmssl.core.moments import global_rows, off_diagonal, standardise
from mmssl.losses.views import check_two_views


class BarlowTwins(NamedTuple):
    """The two terms, unweighted, and a metric: [] each, of the global batch, equal on every process.

    Attributes:
        invariance: squared distance of the diagonal from ones; E where all samples are alike.
        redundancy: sum of squares off the diagonal.
        correlation: mean of the diagonal, without gradient: 1 where the views agree, 0 where all samples are alike.
    """

    invariance: Tensor
    redundancy: Tensor
    correlation: Tensor


def barlow_twins(a: Tensor, b: Tensor) -> BarlowTwins:
    """Barlow Twins loss of two views: squared distance of their cross-correlation matrix from the identity.

    Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv:2103.03230), equations 1 and 2;
    the loss is invariance + lambda * redundancy. As in the authors' code, the variance is biased and has 1e-5 added. Slow loop,
    over the rows of one process that sees them all::

        def loop(a, b):
            G, E = a.shape

            def standard(column):
                centred = [float(x) - mean(column) for x in column]
                return [x / (mean([y**2 for y in centred]) + 1e-5) ** 0.5 for x in centred]

            invariance, redundancy, correlation = 0.0, 0.0, 0.0
            for i in range(E):
                for j in range(E):
                    C = sum(x * y for x, y in zip(standard(a[:, i]), standard(b[:, j]))) / G
                    if i == j:
                        invariance += (1 - C) ** 2
                        correlation += C / E
                    else:
                        redundancy += C**2
            return invariance, redundancy, correlation

    Args:
        a: [B, E] projections of the first views of this process, float32 or float64, not normalised.
        b: [B, E] of the second views; b_i and a_i are of one sample.

    Raises:
        ValueError: shapes do not fit, or the global batch has one sample.
    """
    check_two_views(a, b)
    correlation = distributed.total(standardise(a).T @ standardise(b)) / global_rows(a)
    diagonal = correlation.diagonal()
    return BarlowTwins(
        (1 - diagonal).square().sum(), off_diagonal(correlation).square().sum(), diagonal.detach().mean()
    )
