"""Measures of how features fill their space: ranks, spread, uniformity, alignment. Pure functions of tensors; no labels.

n, m: rows; D: dimensions; q: views of a sample. Sums are float64, whatever the features are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

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


def spread(features: Tensor) -> float:
    """Standard deviation of unit-norm features [n, D] over rows, mean over dimensions, times sqrt(D): 1 spread evenly, 0 collapsed.

    Chen and He 2021 (arXiv:2011.10566), section 4.1, watch it without the factor.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(0, unbiased=False).mean()) * math.sqrt(features.shape[1])


def uniformity(features: Tensor, t: float = 2.0) -> float | None:
    """Uniformity: log of the mean over pairs of rows of exp(-t |x - y|^2), features [n, D] at unit norm. None: fewer than two rows.

    Wang and Isola 2020 (arXiv:2005.10242), equation 2: 0 collapsed, -4 spread evenly over a sphere of many dimensions (t = 2).
    The slow form is `torch.pdist(unit).square().mul(-t).exp().mean().log()`; here in tiles of pairs, n^2 products in all.
    """
    n = len(features)
    if n < 2:
        return None
    unit = F.normalize(features.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    rows, columns = TILE.get(features.device.type, TILE["cpu"])
    for a in range(0, n, rows):
        for b in range(a - a % columns, n, columns):
            with exact_products():
                cosines = unit[a : a + rows] @ unit[b : b + columns].T
            pairs = (-2 * t * (1 - cosines).clamp_min(0)).exp()
            # Each pair once: those above the diagonal.
            total += pairs.triu(a - b + 1).sum(dtype=torch.float64)
    return math.log(float(total) / (n * (n - 1) / 2))


def alignment(views: Tensor) -> float:
    """Alignment: mean squared distance of two views of a sample at unit norm, over pairs of views and samples; 0 where they agree.

    Wang and Isola 2020, equation 1, with exponent 2.

    Args:
        views: [n, q, D], q >= 2.
    """
    unit = F.normalize(views.double(), dim=2)
    n, q, _ = unit.shape
    # Of unit vectors, |sum|^2 = q + the sum of the cosines of all ordered pairs.
    cosine = (unit.sum(1).square().sum(1) - unit.square().sum((1, 2))).sum() / (n * q * (q - 1))
    return max(0.0, 2 - 2 * float(cosine))


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
