"""Tiled InfoNCE: the loss, gradients and errors of the plain one, from tiles of any size; ids, scale, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.info_nce import info_nce
from mmssl.losses.tiled_info_nce import tiled_info_nce
from tests.losses.inputs import GOLDEN, golden_views, unit_rows
from tests.losses.largest import Largest

Loss = Callable[..., Tensor]


def with_gradients(loss: Loss, *inputs: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss and the gradients of a, b and the scale."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves, **options)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def double(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def distance(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of any number, relative to the largest number of its tensor."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(got, expected, strict=True))


@pytest.mark.parametrize("size", [1, 3, 4, 6, 12, 100])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
def test_equals_the_plain_loss_and_its_gradients(size: int, scale: float) -> None:
    a, b = unit_rows(12, 6)
    expected = with_gradients(info_nce, a, b, double(scale))
    got = with_gradients(tiled_info_nce, a, b, double(scale), size=size)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_equals_open_clip_and_the_golden_value() -> None:
    inputs = (*unit_rows(300, 16), double(60.0))
    assert distance(
        with_gradients(tiled_info_nce, *inputs, size=64), with_gradients(open_clip.loss.ClipLoss(), *inputs)
    ) < (1e-12)
    assert tiled_info_nce(*golden_views(), 10.0).item() == pytest.approx(GOLDEN["clip_scale10"], rel=1e-14)


def test_gradients_are_those_of_differences() -> None:
    a, b = (x.requires_grad_() for x in unit_rows(5, 3))
    scale = double(5.0).requires_grad_()
    ids = torch.tensor([0, 1, 0, 2, 2])
    for size in (2, 8):
        assert torch.autograd.gradcheck(lambda *x, s=size: tiled_info_nce(*x, size=s), (a, b, scale))
        assert torch.autograd.gradcheck(lambda *x, s=size: tiled_info_nce(*x, size=s, ids=ids), (a, b, scale))
    # So wide apart that one exponential does not serve both directions.
    for steep in (double(90.0).requires_grad_(), double(400.0).requires_grad_()):
        assert torch.autograd.gradcheck(lambda *x: tiled_info_nce(*x, size=2), (a, b, steep))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradient_of_one_input_alone(wanted: tuple[bool, bool, bool]) -> None:
    inputs = (*unit_rows(9, 4), double(20.0))
    leaves = [x.clone().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
    tiled_info_nce(*leaves, size=4).backward()
    expected = with_gradients(info_nce, *inputs)[1:]
    for leaf, want, gradient in zip(leaves, wanted, expected, strict=True):
        if want:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-14)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_float32_at_scale_100_is_close_to_float64(spread: float) -> None:
    """Random pairs, and pairs that belong together as in a trained model, over several tiles."""
    a, b = unit_rows(1500, 512, seed=3)
    b = F.normalize(b + spread * a, dim=-1)
    a, b = a.float(), b.float()
    exact = with_gradients(info_nce, a.double(), b.double(), double(100.0))
    got = with_gradients(tiled_info_nce, a, b, torch.tensor(100.0), size=512)
    assert {x.dtype for x in got} == {torch.float32}
    assert distance([x.double() for x in got], exact) < 5e-6


def test_a_solved_batch_keeps_its_digits() -> None:
    """Where each positive is so far ahead that 1 + others is 1, float32 still knows the others."""
    a, b = unit_rows(300, 64, seed=3)
    a, b = a.float(), F.normalize(b + 2 * a, dim=-1).float()
    logits = 100 * a.double() @ b.double().T
    others = [(logits - logits.diagonal()[:, None]), (logits - logits.diagonal()).T]
    expected = sum(x.fill_diagonal_(-torch.inf).exp().sum(1).mean() for x in others) / 2
    assert expected < 1e-12
    got = with_gradients(tiled_info_nce, a, b, torch.tensor(100.0), size=128)
    assert got[0].item() == pytest.approx(float(expected), rel=1e-4)
    assert info_nce(a, b, 100.0) == 0
    exact = with_gradients(tiled_info_nce, a.double(), b.double(), double(100.0))
    assert distance([x.double() for x in got], exact) < 1e-4


@pytest.mark.parametrize("alike", [False, True])
def test_without_negatives_there_is_nothing_to_learn(alike: bool) -> None:
    n = 5 if alike else 1
    ids = torch.zeros(n, dtype=torch.int64)
    for join in (None, lambda x: x[None].logsumexp(0)):
        got = with_gradients(tiled_info_nce, *unit_rows(n, 3), double(10.0), ids=ids, size=2, over_processes=join)
        assert all((x == 0).all() for x in got)


@pytest.mark.parametrize("size", [2, 64])
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_large_scales_stay_finite_and_right_in_float32(scale: float, size: int) -> None:
    a, b = unit_rows(32, 8)
    got = with_gradients(tiled_info_nce, a.float(), b.float(), torch.tensor(scale), size=size)
    expected = with_gradients(info_nce, a.float().double(), b.float().double(), double(scale))
    assert all(x.isfinite().all() for x in got)
    assert distance([x.double() for x in got], expected) < 1e-3


@pytest.mark.parametrize("scale", [30.0, 40.0, 45.0, 51.9, 52.0, 60.0])
def test_rows_opposite_to_all_candidates_keep_their_digits_in_float32(scale: float) -> None:
    """Four rows whose logits all stand 2 * scale below those of the others: one power of 2 for both ends would lose them."""
    tilt = torch.linspace(-0.05, 0.05, 32, dtype=torch.float64)
    b = torch.stack([tilt.cos(), tilt.sin()], 1)
    a = b.roll(1, 0)
    a[:4] *= -1
    expected = with_gradients(info_nce, a.float().double(), b.float().double(), double(scale))
    for size in (8, 64):
        got = with_gradients(tiled_info_nce, a.float(), b.float(), torch.tensor(scale), size=size)
        assert distance([x.double() for x in got], expected) < 1e-4


@pytest.mark.parametrize("size", [1, 4, 5, 100])
@pytest.mark.parametrize("n", [1, 2, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapse_costs_ln_n(n: int, size: int, dtype: torch.dtype) -> None:
    a = F.normalize(torch.ones(n, 4, dtype=dtype), dim=-1)
    digits = 1e-12 if dtype == torch.float64 else 2e-5  # logits are 100
    assert tiled_info_nce(a, a.clone(), 100.0, size=size).item() == pytest.approx(math.log(n), abs=digits)
    alike = tiled_info_nce(a, a.clone(), 100.0, size=size, ids=torch.zeros(n, dtype=torch.int64))
    assert alike.item() == pytest.approx(0, abs=digits)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("scale", [7.0, 500.0])
@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_processes_average_to_the_loss_of_the_whole(processes: int, scale: float, repeated: bool) -> None:
    """Processes side by side: each has its rows, and one log-sum-exp over all of them finishes the columns."""
    whole = (*unit_rows(8, 5), double(scale))
    # With repeats some process has a column in which every entry is left out.
    ids = torch.tensor([0, 0, 0, 0, 1, 2, 3, 0]) if repeated else torch.arange(8)
    expected = with_gradients(tiled_info_nce, *whole, ids=ids)
    if not repeated:
        assert distance(expected, with_gradients(info_nce, *whole)) < 1e-12
    a, b, learned = (x.clone().requires_grad_() for x in whole)
    size = 8 // processes
    columns: list[Tensor] = []

    def shares(over_processes: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [
            tiled_info_nce(
                a[start : start + size], b[start : start + size], learned, all_b=b, offset=start, ids=ids,
                over_processes=over_processes, size=3,
            )
            for start in range(0, 8, size)
        ]  # fmt: skip

    def note(x: Tensor) -> Tensor:
        columns.append(x)
        return x

    shares(note)
    loss = torch.stack(shares(lambda _: torch.stack(columns).logsumexp(0))).mean()
    gradients = torch.autograd.grad(loss, (a, b, learned))
    assert distance((loss.detach(), *gradients), expected) < 1e-12


def test_half_precision_and_autocast_give_float32() -> None:
    a, b = unit_rows(20, 8, dtype=torch.bfloat16)
    a.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiled_info_nce(a, b, 100.0, size=8)
        loss.backward()
    exact = tiled_info_nce(a.detach().double(), b.double(), 100.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = a.detach().float().requires_grad_()
        tiled_info_nce(c, b.float(), 100.0, size=8).backward()
    expected = with_gradients(info_nce, a.detach().double(), b.double(), double(100.0))[1]
    assert c.grad is not None
    assert distance([c.grad.double()], [expected]) < 1e-5


def test_second_derivatives_are_refused_and_not_left_out() -> None:
    a, b = (x.requires_grad_() for x in unit_rows(5, 4))
    (gradient,) = torch.autograd.grad(tiled_info_nce(a, b, 10.0, size=2), a, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.square().sum().backward()


def test_numbers_that_are_not_are_not_hidden() -> None:
    a, b = unit_rows(6, 4)
    a[2, 1] = math.nan
    assert tiled_info_nce(a, b, 10.0, size=2).isnan()


def test_no_tensor_is_larger_than_inputs_and_a_tile() -> None:
    n, d, size = 200, 8, 32
    for loss, bound in ((tiled_info_nce, n * d), (info_nce, n * n)):
        options = {"size": size, "ids": torch.arange(n)} if loss is tiled_info_nce else {}
        given = (*unit_rows(n, d), double(10.0))
        with Largest() as largest:
            with_gradients(loss, *given, **options)
        assert largest.numbers == bound  # the plain one shows that a matrix would have been seen


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"b": torch.zeros(3, 2)}, "wanted equal shapes"),
        ({"all_b": torch.zeros(8, 3)}, r"wanted \[B, E\] and \[G, E\]"),
        ({"all_b": torch.zeros(8, 2)}, "give the log-sum-exp over processes"),
        ({"offset": 1}, "rank \\* B"),
        ({"size": 0}, "wanted at least 1"),
        ({"scale": torch.ones(2)}, "wanted one number"),
        ({"ids": torch.zeros(3, dtype=torch.int64)}, r"wanted \[4\] or \[4, k\]"),
        ({"present": torch.ones(3, dtype=torch.bool)}, r"wanted \[4\] of bool"),
        ({"present": torch.ones(4)}, r"wanted \[4\] of bool"),
        ({"ids": torch.zeros(4)}, "wanted integers"),
    ],
)
def test_misuse_is_refused(arguments: dict[str, object], complaint: str) -> None:
    given: dict[str, object] = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2), "scale": 1.0} | arguments
    with pytest.raises(ValueError, match=complaint):
        tiled_info_nce(**given)  # type: ignore[arg-type]
