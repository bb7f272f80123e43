"""Inner products of rows in float32 and by three TF32 products, and the losses made of them, beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.losses import products
from mmssl.losses.info_nce import info_nce
from mmssl.losses.products import inner_products, split_tf32
from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss
from tests.losses.inputs import unit_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fast", [True, False])
def test_inner_products_are_those_of_all_rows(dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(products, "_LINEAR", None)
    elif products._LINEAR is None:
        pytest.skip("this torch has no oneDNN")
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for left, right in ((x, y.T), (x.T.contiguous().T, y.T), (x[::2], y.T.contiguous()), (x[:1], y.T[1:])):
        made = inner_products(left.to(dtype), right.to(dtype))
        torch.testing.assert_close(made.double(), left @ right.T, rtol=0, atol=tolerance * 10)
        assert made.dtype == dtype


def test_two_tf32_numbers_make_up_a_float32_number() -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 40)
    high, low = split_tf32(x.T)
    for part in (high, low):
        assert (part.contiguous().view(torch.int32) & 0x1FFF == 0).all()
    assert ((x.T - high).abs() <= 2**-11 * x.T.abs()).all()
    assert ((x.T.double() - high.double() - low.double()).abs() <= 2**-22 * x.T.double().abs()).all()


@pytest.mark.parametrize(("n", "m", "k"), [(30, 40, 20), (30, 5, 200), (1, 1, 1), (0, 3, 2)])
def test_three_products_are_far_better_than_one_of_tf32(n: int, m: int, k: int) -> None:
    random = torch.Generator().manual_seed(n)
    x, y = (torch.randn(size, k, generator=random) for size in (n, m))
    exact, terms = x.double() @ y.double().T, x.double().abs() @ y.double().abs().T
    for left in (x, x.T.contiguous().T):
        made = inner_products(left, y, "tf32x3")
        assert made.dtype == torch.float32
        assert ((made - exact).abs() <= 2**-20 * terms).all()
    if n > 1:
        coarse = split_tf32(x)[0].double() @ split_tf32(y)[0].double().T
        assert (coarse - exact).abs().max() > 50 * (made - exact).abs().max()
    assert torch.equal(inner_products(x.double(), y.double(), "tf32x3"), x.double() @ y.double().T)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach().double(), *(x.double() for x in torch.autograd.grad(loss, leaves))]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_losses_from_three_products_have_nearly_the_error_of_float32(sigmoid: bool) -> None:
    """At scale 100, relative to the largest gradient: 1e-5; products of TF32 numbers alone have 3e-4 and more."""
    a, b = (x.float() for x in unit_rows(300, 128, seed=3))

    def run(dtype: torch.dtype, whole: bool) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (a, b, torch.tensor(100.0))]
        x, y, scale = leaves
        bias = torch.tensor(-10.0, dtype=dtype)
        if whole:
            return gradients(sigmoid_loss(x, y, scale, bias) if sigmoid else info_nce(x, y, scale), leaves)
        options: Any = {"size": 128, "products": "tf32x3"}
        loss = tiled_sigmoid_loss(x, y, scale, bias, **options) if sigmoid else tiled_info_nce(x, y, scale, **options)
        return gradients(loss, leaves)

    exact = run(torch.float64, whole=True)
    error = max(
        float((x - y).abs().max() / y.abs().max()) for x, y in zip(run(torch.float32, False), exact, strict=True)
    )
    assert error < 3e-5
