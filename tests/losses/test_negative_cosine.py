"""Negative cosine similarity against its loop, golden and analytic values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.negative_cosine import negative_cosine
from tests.losses.inputs import GOLDEN, golden_rows
from tests.losses.slow_loop import slow_loop


def rows(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of rows [n, d], not normalised."""
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, b


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (17, 2)])
def test_equals_the_slow_loop(n: int, d: int) -> None:
    a, b = rows(n, d, seed=n)
    assert negative_cosine(a, b).item() == pytest.approx(slow_loop(negative_cosine)(a, b), rel=1e-12)


def test_golden_values() -> None:
    z0, z1 = golden_rows()
    assert negative_cosine(z0, z1).item() == pytest.approx(GOLDEN["simsiam"], rel=1e-14)


def test_analytic_values() -> None:
    a, _ = rows(6, 4)
    assert negative_cosine(a, 3 * a).item() == pytest.approx(-1)
    assert negative_cosine(a, -a).item() == pytest.approx(1)
    assert negative_cosine(torch.eye(4)[:2], torch.eye(4)[2:]).item() == 0
    byol = (F.normalize(a, dim=-1) - F.normalize(a.flip(0), dim=-1)).square().sum(-1).mean()
    assert 2 + 2 * negative_cosine(a, a.flip(0)).item() == pytest.approx(byol.item())


def test_gradients_are_those_of_differences_and_none_flows_to_the_target() -> None:
    a, b = (x.requires_grad_() for x in rows(3, 4))
    assert torch.autograd.gradcheck(lambda a: negative_cosine(a, b), (a,))
    negative_cosine(a, b).backward()
    assert a.grad is not None
    assert b.grad is None


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted equal shapes \[B, E\]"):
        negative_cosine(torch.zeros(4, 2), torch.zeros(1, 2))
