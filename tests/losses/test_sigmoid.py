"""Sigmoid losses, plain and tiled, against their loop, open_clip, golden and analytic values, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss
from tests.losses.inputs import GOLDEN, golden_views, unit_rows
from tests.losses.largest import Largest
from tests.losses.slow_loop import slow_loop

Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {"plain": sigmoid_loss, "tiled": partial(tiled_sigmoid_loss, size=3)}
both = pytest.mark.parametrize("name", LOSSES)


def with_gradients(loss: Loss, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The loss and the gradients of a, b, the scale and the bias."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def inputs(n: int, d: int, scale: float = 10.0, bias: float = -10.0, seed: int = 0) -> tuple[Tensor, ...]:
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (scale, bias))
    return (*unit_rows(n, d, seed), *numbers)


@both
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (17, 2)])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -30.0)])
def test_equals_the_slow_loop(name: str, n: int, d: int, scale: float, bias: float) -> None:
    a, b = unit_rows(n, d, seed=n)
    expected = slow_loop(sigmoid_loss)(a, b, scale, bias, [True] * n, [[i] for i in range(n)])
    assert LOSSES[name](a, b, scale, bias).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@both
def test_golden_value(name: str) -> None:
    value = LOSSES[name](*golden_views(), 10.0, -10.0).item()
    assert value == pytest.approx(GOLDEN["siglip_scale10_bias-10"], rel=1e-14)


@both
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -20.0), (1e4, 30.0)])
def test_equals_open_clip_with_gradients(name: str, scale: float, bias: float) -> None:
    given = inputs(14, 6, scale, bias)
    for mine, other in zip(
        with_gradients(LOSSES[name], *given), with_gradients(open_clip.loss.SigLipLoss(), *given), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 12, 100, None])
def test_any_tile_gives_the_plain_gradients(size: int | None) -> None:
    given = inputs(12, 6)
    got = with_gradients(lambda *x: tiled_sigmoid_loss(*x, size=size), *given)
    for mine, other in zip(got, with_gradients(sigmoid_loss, *given), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@both
def test_gradients_are_those_of_differences(name: str) -> None:
    given = [x.requires_grad_() for x in inputs(4, 3, 5.0, -2.0)]
    assert torch.autograd.gradcheck(LOSSES[name], given)
    a, b, scale, bias = given
    more = unit_rows(7, 3, seed=1)[0].requires_grad_()

    def among_others(a: Tensor, all_b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return LOSSES[name](a, b.detach(), scale, bias, all_b=all_b, offset=2)

    assert torch.autograd.gradcheck(among_others, (a, more, scale, bias))


def test_scale_and_bias_may_have_an_axis() -> None:
    a, b, scale, bias = inputs(5, 4)
    got = with_gradients(LOSSES["tiled"], a, b, scale[None], bias[None])
    expected = with_gradients(LOSSES["tiled"], a, b, scale, bias)
    assert [x.shape for x in got[3:]] == [(1,), (1,)]
    torch.testing.assert_close([*got[:3], *(x[0] for x in got[3:])], [*expected])


@pytest.mark.parametrize("only", range(4))
def test_gradient_of_one_input_alone(only: int) -> None:
    given = inputs(9, 4)
    leaves = [x.clone().requires_grad_(number == only) for number, x in enumerate(given)]
    LOSSES["tiled"](*leaves).backward()
    expected = with_gradients(sigmoid_loss, *given)[1:]
    for number, leaf in enumerate(leaves):
        if number == only:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, expected[number], rtol=1e-12, atol=1e-14)
        else:
            assert leaf.grad is None


def test_without_gradient_the_loss_is_the_same() -> None:
    leaves = [x.requires_grad_() for x in inputs(9, 4)]
    with torch.no_grad():
        assert torch.equal(LOSSES["tiled"](*leaves), LOSSES["tiled"](*leaves).detach())
        loss = LOSSES["tiled"](*leaves)
    assert not loss.requires_grad
    assert torch.equal(loss, LOSSES["tiled"](*leaves).detach())


def test_second_derivatives_are_refused_and_not_left_out() -> None:
    a, b, scale, bias = (x.requires_grad_() for x in inputs(5, 4))
    # A penalty of the gradient that adds nothing to the gradient would go unnoticed.
    with pytest.raises(RuntimeError, match=r"create_graph=True.*sigmoid_loss.*tiles: false"):
        torch.autograd.grad(LOSSES["tiled"](a, b, scale, bias), a, create_graph=True)
    (gradient,) = torch.autograd.grad(LOSSES["plain"](a, b, scale, bias), a, create_graph=True)
    assert gradient.requires_grad


@both
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_processes_average_to_the_loss_of_the_whole(name: str, processes: int) -> None:
    whole = inputs(8, 5, 7.0, -3.0)
    a, b, scale, bias = (x.clone().requires_grad_() for x in whole)
    size = 8 // processes
    shares = [LOSSES[name](a[r : r + size], b[r : r + size], scale, bias, all_b=b, offset=r) for r in range(0, 8, size)]
    loss = torch.stack(shares).mean()
    got = (loss.detach(), *torch.autograd.grad(loss, (a, b, scale, bias)))
    for mine, other in zip(got, with_gradients(sigmoid_loss, *whole), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@both
@pytest.mark.parametrize("n", [1, 4, 13])
def test_value_where_nothing_is_known(name: str, n: int) -> None:
    """Logits of zero say one half to each of G questions."""
    a, b = unit_rows(n, 4)
    assert LOSSES[name](a, b, 0.0, 0.0).item() == pytest.approx(n * math.log(2), rel=1e-12)


@both
def test_perfect_separation_costs_nothing(name: str) -> None:
    a = torch.eye(6, dtype=torch.float64)
    assert LOSSES[name](a, a.clone(), 200.0, -100.0).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES[name](a, a.roll(1, 0), 200.0, -100.0).item() == pytest.approx(200, rel=1e-12)


def test_float32_is_close_to_float64() -> None:
    a, b = unit_rows(1500, 64, seed=3)
    given = [x.float() for x in (a, F.normalize(b + 2 * a, dim=-1), torch.tensor(100.0), torch.tensor(-50.0))]
    exact = with_gradients(sigmoid_loss, *(x.double() for x in given))
    got = with_gradients(partial(tiled_sigmoid_loss, size=512), *given)
    for mine, other in zip(got, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).abs().max() < 5e-6 * other.abs().max()


def test_half_precision_and_autocast_give_float32() -> None:
    a, b = unit_rows(20, 8, dtype=torch.bfloat16)
    a.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES["tiled"](a, b, 100.0, -20.0)
        loss.backward()
    assert loss.dtype == torch.float32
    exact = sigmoid_loss(a.detach().double(), b.double(), 100.0, -20.0)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_no_tensor_is_larger_than_inputs_and_a_tile() -> None:
    for loss, bound in ((partial(tiled_sigmoid_loss, size=32), 200 * 8), (sigmoid_loss, 200 * 200)):
        given = inputs(200, 8)
        with Largest() as largest:
            with_gradients(loss, *given)
        assert largest.numbers == bound


@both
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"b": torch.zeros(3, 2)}, "wanted equal shapes"),
        ({"all_b": torch.zeros(8, 3)}, r"wanted \[B, E\] and \[G, E\]"),
        ({"offset": 1}, "rank \\* B"),
    ],
)
def test_misuse_is_refused(name: str, arguments: dict[str, object], complaint: str) -> None:
    given: dict[str, object] = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)} | arguments
    with pytest.raises(ValueError, match=complaint):
        LOSSES[name](scale=1.0, bias=0.0, **given)
