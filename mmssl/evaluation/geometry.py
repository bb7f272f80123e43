"""Measures of how features fill their space: ranks, spread, uniformity, alignment. Pure functions of tensors; no labels.

n, m: rows; D: dimensions; q: views of a sample. Sums are float64, whatever the features are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.statistics import Z95
from mmssl.evaluation.tiles import TILE, exact_products

_ROWS_AT_ONCE = 8192
_ROUNDING = 1e-6
"""Spread below this share of the features' size is rounding of float32."""


def entropy_rank(spectrum: Tensor, eps: float = 0.0) -> float | None:
    """Exponential of the entropy of a spectrum [k] >= 0: k where all values are equal, 1 where one is not zero. None: all are zero.

    Roy and Vetterli 2007 ("The effective rank"); RankMe and LiDAR add `eps` to each share.
    """
    if not spectrum.sum() > 0:
        return None
    shares = spectrum / spectrum.sum() + eps
    return math.exp(-float(torch.xlogy(shares, shares).sum()))


def rankme(features: Tensor, eps: float = 1e-7) -> float | None:
    """RankMe of features [n, D]: `entropy_rank` of the singular values, with `eps` added to each share; None: all are zero.

    Garrido et al. 2023 (arXiv:2210.02885), equation 1. Not centred: a large common part of all features lowers it. At most
    min(n, D), so that n should be well above D. A larger `eps` counts empty directions: 1e-5, as other code has it, adds a quarter
    where 2000 are empty; 1e-7 adds 0.3 %.
    """
    return entropy_rank(_singular_values(features), eps)


def effective_rank(features: Tensor) -> float | None:
    """Effective rank of the covariance of features [n, D]: `entropy_rank` of the singular values of centred features.

    None: the features do not differ by more than rounding.
    """
    mean = features.double().mean(0)
    spread, size = _singular_values(features, mean), _singular_values(features)
    return entropy_rank(spread) if spread.max() > _ROUNDING * size.max() else None


class Estimate(NamedTuple):
    """A measure, and its 95 % interval over samples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(
        cls, value: float, influence: Tensor, owner: Tensor | None, low: float = -math.inf, high: float = math.inf
    ) -> Estimate:
        """From the influence [n] of each row on the value; the sum of the squares of the samples' influences is its variance.

        Args:
            value: within low and high, as the interval is.
            influence: [n] float64.
            owner: [n], number of the sample of each row; None: each row is a sample.
        """
        if owner is not None:
            influence = torch.zeros_like(influence).index_add_(
                0, torch.unique(owner, return_inverse=True)[1], influence
            )
        half = Z95 * math.sqrt(float(influence.square().sum()))
        return cls(value, max(low, value - half), min(high, value + half))


def feature_spread(features: Tensor, owner: Tensor | None = None) -> Estimate:
    """Standard deviation of unit-norm features [n, D] over rows, mean over dimensions, times sqrt(D): 1 spread evenly, 0 collapsed.

    Chen and He 2021 (arXiv:2011.10566), section 4.1, watch it without the factor. The interval is the delta method's.

    Args:
        owner: [n], see `Estimate.of`.
    """
    unit = F.normalize(features.double(), dim=1)
    n, dimensions = unit.shape
    deviation = unit.std(0, unbiased=False)
    # A dimension without spread owes none of it to any row.
    excess = ((unit - unit.mean(0)).square() - deviation.square()) / (2 * deviation.clamp_min(1e-12))
    factor = math.sqrt(dimensions)
    return Estimate.of(float(deviation.mean()) * factor, excess.mean(1) * factor / n, owner, 0.0)


def uniformity(features: Tensor, t: float = 2.0, owner: Tensor | None = None) -> Estimate | None:
    """Uniformity: log of the mean over pairs of rows of exp(-t |x - y|^2), features [n, D] at unit norm. None: fewer than two rows.

    Wang and Isola 2020 (arXiv:2005.10242), equation 2: 0 collapsed, -4 spread evenly over a sphere of many dimensions (t = 2).
    The slow form is `torch.pdist(unit).square().mul(-t).exp().mean().log()`; here in tiles of pairs, n^2 products in all. The
    interval is that of a U-statistic: a row owes to its pairs twice what a value owes to a mean (Hoeffding 1948).

    Args:
        owner: [n], see `Estimate.of`.
    """
    n = len(features)
    if n < 2:
        return None
    unit = F.normalize(features.float(), dim=1)
    sums = torch.zeros(n, dtype=torch.float64, device=features.device)  # of each row, over all others
    rows, columns = TILE.get(features.device.type, TILE["cpu"])
    for a in range(0, n, rows):
        for b in range(a - a % columns, n, columns):
            with exact_products():
                cosines = unit[a : a + rows] @ unit[b : b + columns].T
            pairs = (-2 * t * (1 - cosines).clamp_min(0)).exp()
            pairs = pairs.triu(a - b + 1)  # each pair once: those above the diagonal
            sums[a : a + rows] += pairs.sum(1, dtype=torch.float64)
            sums[b : b + columns] += pairs.sum(0, dtype=torch.float64)
    mean = float(sums.sum()) / (n * (n - 1))
    return Estimate.of(math.log(mean), 2 * (sums / (n - 1) / mean - 1) / n, owner, high=0.0)


def alignment(views: Tensor) -> Estimate:
    """Alignment: mean squared distance of two views of a sample at unit norm, over pairs of views and samples; 0 where they agree.

    Wang and Isola 2020, equation 1, with exponent 2. At most 4.

    Args:
        views: [n, q, D], q >= 2.
    """
    unit = F.normalize(views.double(), dim=2)
    n, q, _ = unit.shape
    # Of unit vectors, |sum|^2 = q + the sum of the cosines of all ordered pairs.
    cosine = (unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / (q * (q - 1))
    mean = float(cosine.mean())
    return Estimate.of(max(0.0, 2 - 2 * mean), 2 * (cosine - mean) / n, None, 0.0, 4.0)


def lidar(views: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> float | None:
    """LiDAR: effective number of directions in which samples differ by more than views of one sample do.

    Thilak et al. 2023 (arXiv:2312.04000), section 4: `entropy_rank` of the eigenvalues of W^(-1/2) B W^(-1/2), with B the
    covariance of the samples' means and W that of views around them, plus `delta`. At most min(n - 1, D). None: the means do not
    differ by more than rounding.

    Args:
        views: [n, q, D], q >= 2; samples are the classes.
        delta: added to the diagonal of W.
        eps: added to each share of the spectrum.
    """
    means = views.double().mean(1)
    around = means - means.mean(0)
    if not around.abs().max() > _ROUNDING * views.abs().max():
        return None
    size = max(1, _ROWS_AT_ONCE // views.shape[1])
    parts = zip(torch.split(views, size), torch.split(means, size), strict=True)
    within = (
        _sum_of_products((part.double() - mean[:, None]).flatten(0, 1) for part, mean in parts) / views[..., 0].numel()
    )
    within.diagonal().add_(delta)
    lower = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(lower, around.T @ around / len(views), upper=False)
    spectrum = torch.linalg.eigvalsh(torch.linalg.solve_triangular(lower, half.T, upper=False))
    return entropy_rank(spectrum.clamp_min(0), eps)


def _sum_of_products(parts: Iterable[Tensor]) -> Tensor:
    """X^T X [D, D] of rows X that come in parts [.., D]."""
    return reduce(torch.add, (part.T @ part for part in parts))


def _singular_values(features: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """The min(n, D) largest singular values of features [n, D] minus a mean, float64: roots of the eigenvalues of their product."""
    product = _sum_of_products(part.double() - mean for part in torch.split(features, _ROWS_AT_ONCE))
    values: Tensor = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    return values[-min(features.shape) :]
