"""Moments over the batch, in one process; those of two are held by the tests of batch normalisation and of losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.moments import centre, covariance, off_diagonal, standardise


def rows(n: int = 7, width: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=random, dtype=torch.float64) * torch.arange(1, width + 1) + 5


def test_equal_torch() -> None:
    x = rows()
    torch.testing.assert_close(centre(x), x - x.mean(0))
    torch.testing.assert_close(standardise(x, 0.1), F.batch_norm(x, None, None, training=True, eps=0.1))
    torch.testing.assert_close(covariance(x), torch.cov(x.T))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_stands_beside_the_diagonal(size: int) -> None:
    matrix = torch.arange(float(size * size)).view(size, size)
    expected = [float(matrix[i, j]) for i in range(size) for j in range(size) if i != j]
    assert off_diagonal(matrix).flatten().tolist() == expected


@pytest.mark.parametrize("function", [centre, standardise, covariance])
def test_one_row_has_no_variance(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="got 1 row over all processes, wanted at least 2; use a larger batch"):
        function(rows(1))
