"""Hard negatives of InfoNCE and of the sigmoid loss: the slow loop, tiles of any size, nothing usable, several processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.losses.candidates import over_present
from mmssl.losses.hard_negatives import HardNegatives
from mmssl.losses.info_nce import info_nce
from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_info_nce import tiled_info_nce
from tests.losses.inputs import unit_rows
from tests.losses.slow_loop import slow_loop

B, M, E = 7, 10, 5
PRESENT = torch.tensor([True, True, False, True, True, True, True])
USABLE = torch.tensor([True, False, True, True, True, True, True, False, True, True])
ROW_IDS = torch.arange(B)
IDS = torch.tensor([9, 1, 1, 3, 20, 21, 0, 5, 6, 22])  # candidates 2, 3, 6 and 8 say the truth about a row


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = unit_rows(B, E)
    n, _ = unit_rows(M, E, seed=3)
    return a.requires_grad_(), b.requires_grad_(), n.requires_grad_(), torch.tensor(9.0).double().requires_grad_()


@pytest.mark.parametrize("size", [None, 1, 3, 100])
@pytest.mark.parametrize("tiled", [False, True])
def test_equals_the_slow_loop(size: int | None, tiled: bool) -> None:
    a, b, n, scale = inputs()
    hard = HardNegatives(a, n, PRESENT, USABLE, ROW_IDS, IDS)
    further = hard.log_sum_exp(scale, size)
    loss = (tiled_info_nce if tiled else info_nce)(a, b, scale, present=PRESENT, further_b=further)
    plain = [x.detach() for x in (a, b)]
    n_ids = IDS.tolist()
    expected = slow_loop(HardNegatives)(
        *plain, 9.0, PRESENT.tolist(), ROW_IDS.tolist(), n.detach(), USABLE.tolist(), n_ids
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    without = info_nce(a, b, scale, present=PRESENT)
    assert loss.item() - without.item() > 0.1


@pytest.mark.parametrize("size", [1, 3, 100])
def test_tiles_have_the_gradients_of_one_matrix(size: int) -> None:
    def gradients(tile: int | None, tiled: bool) -> tuple[Tensor, ...]:
        leaves = inputs()
        a, b, n, scale = leaves
        there = HardNegatives(a, n, PRESENT, USABLE, ROW_IDS, IDS).log_sum_exp(scale, tile)
        back = HardNegatives(b, n, PRESENT, ~USABLE).log_sum_exp(scale, tile)
        loss = (tiled_info_nce if tiled else info_nce)(a, b, scale, present=PRESENT, further_b=there, further_a=back)
        return torch.autograd.grad(loss, leaves)

    for got, expected in zip(gradients(size, True), gradients(None, False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tiled", [False, True])
def test_rows_without_usable_candidates_have_the_plain_loss(tiled: bool) -> None:
    leaves = inputs()
    a, b, n, scale = leaves
    loss = tiled_info_nce if tiled else info_nce
    hard = HardNegatives(a, n, PRESENT, torch.zeros(M, dtype=torch.bool))
    with_none = loss(a, b, scale, present=PRESENT, further_b=hard.log_sum_exp(scale))
    torch.testing.assert_close(with_none, loss(a, b, scale, present=PRESENT), rtol=1e-14, atol=0)
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(with_none, leaves))
    assert hard.counts().tolist() == [0] * B


def test_counts_leave_out_what_says_the_truth() -> None:
    a, _, n, _ = inputs()
    usable = int(USABLE.sum())
    assert HardNegatives(a, n, PRESENT, USABLE, ROW_IDS, IDS).counts().tolist() == [
        usable - 1,  # candidate 6
        usable - 1,  # candidate 2; 1 is not usable
        0,
        usable - 1,
        usable,
        usable,  # candidate 7 is not usable
        usable - 1,
    ]


@pytest.mark.parametrize("size", [None, 1, 3, 100])
@pytest.mark.parametrize("bias", [-10.0, 2.0])
def test_sigmoid_loss_equals_the_slow_loop(size: int | None, bias: float) -> None:
    a, b, n, scale = inputs()
    hard = HardNegatives(a, n, PRESENT, USABLE, ROW_IDS, IDS)
    plain = sigmoid_loss(a, b, scale, bias, present=PRESENT)
    loss = plain + over_present(hard.sigmoid_terms(scale, bias, size).mean(), PRESENT)
    rest = PRESENT.tolist(), ROW_IDS.tolist(), n.detach(), USABLE.tolist(), IDS.tolist()
    expected = slow_loop(HardNegatives.sigmoid_terms)(a.detach(), b.detach(), 9.0, bias, *rest)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert loss.item() > plain.item() + 1e-3


def test_gradients_of_sigmoid_terms_are_those_of_differences() -> None:
    a, _, n, scale = inputs()
    bias = torch.tensor(-2.0).double().requires_grad_()

    def terms(a: Tensor, n: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return HardNegatives(a, n, PRESENT, USABLE, ROW_IDS, IDS).sigmoid_terms(scale, bias, 3)

    assert torch.autograd.gradcheck(terms, (a, n, scale, bias))


def test_sigmoid_terms_of_rows_without_usable_candidates_are_nothing() -> None:
    leaves = inputs()
    a, _, n, scale = leaves
    terms = HardNegatives(a, n, PRESENT, torch.zeros(M, dtype=torch.bool)).sigmoid_terms(scale, 5.0)
    assert terms.tolist() == [0.0] * B
    assert all(not x.any() for x in torch.autograd.grad(terms.sum(), (a, n, scale)))
