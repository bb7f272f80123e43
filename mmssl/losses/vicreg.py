"""VICReg loss: invariance, variance and covariance terms of two views."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.moments import covariance, off_diagonal
from mmssl.losses.views import check_two_views

EPS = 1e-4
"""Added to variances, so that the standard deviation has a gradient at zero."""
COLLAPSED = 1 - EPS**0.5
"""The variance term where all samples are alike."""


class VicReg(NamedTuple):
    """The three terms, unweighted, and a metric: [] each.

    Attributes:
        invariance: this process' share, whose mean over processes is that of the global batch.
        variance: of the global batch, equal on every process; `COLLAPSED` where all samples are alike.
        covariance: likewise; 0 where all samples are alike.
        deviation: mean standard deviation of the features, without gradient: 0 where all samples are alike; VICReg asks for 1.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    deviation: Tensor


def vicreg(a: Tensor, b: Tensor) -> VicReg:
    """VICReg loss: mean squared error of two views, hinge on standard deviations, squared covariances of features.

    Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization" (arXiv:2105.04906), equations 1 to 6, with the
    scales of the authors' code, for which the weights 25, 25 and 1 hold: the invariance is a mean over features too, the variance
    a mean over the two views and the covariance their sum. Slow loop, over the rows of one process that sees them all::

        def loop(a, b):
            G, E = a.shape
            invariance = mean([mean((x - y) ** 2) for x, y in zip(a, b)])
            variance, covariance, deviation = 0.0, 0.0, 0.0
            for z in (a, b):

                def cov(i, j):
                    return sum(float((x[i] - mean(z[:, i])) * (x[j] - mean(z[:, j]))) for x in z) / (G - 1)

                variance += mean([max(0, 1 - (cov(i, i) + 1e-4) ** 0.5) for i in range(E)]) / 2
                covariance += sum(cov(i, j) ** 2 for i in range(E) for j in range(E) if i != j) / E
                deviation += mean([cov(i, i) ** 0.5 for i in range(E)]) / 2
            return invariance, variance, covariance, deviation

    Args:
        a: [B, E] projections of the first views of this process, float32 or float64, not normalised.
        b: [B, E] of the second views; b_i and a_i are of one sample.

    Raises:
        ValueError: shapes do not fit, or the global batch has one sample.
    """
    check_two_views(a, b)
    matrices = [covariance(z) for z in (a, b)]
    variances = torch.stack([matrix.diagonal() for matrix in matrices])
    return VicReg(
        distributed.mean((a - b).square().mean(1)),
        F.relu(1 - (variances + EPS).sqrt()).mean(),
        torch.stack([off_diagonal(matrix).square().sum() for matrix in matrices]).sum() / a.shape[1],
        variances.detach().sqrt().mean(),
    )
