"""Symmetric InfoNCE against its loop, open_clip, golden and analytic values."""

from __future__ import annotations

import math

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F

from mmssl.losses.info_nce import info_nce, info_nce_accuracy
from tests.losses.inputs import GOLDEN, golden_views, unit_rows
from tests.losses.slow_loop import slow_loop


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (15, 4), (16, 8), (17, 2)])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equals_the_slow_loop(n: int, d: int, scale: float) -> None:
    a, b = unit_rows(n, d, seed=n)
    expected = slow_loop(info_nce)(a, b, scale, [True] * n, [[i] for i in range(n)])
    assert info_nce(a, b, scale).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_golden_value() -> None:
    assert info_nce(*golden_views(), 10.0).item() == pytest.approx(GOLDEN["clip_scale10"], rel=1e-14)


def test_equals_open_clip_with_gradients() -> None:
    a, b = unit_rows(12, 6)
    scale = torch.tensor(20.0, dtype=torch.float64)
    ours = [x.clone().requires_grad_() for x in (a, b, scale)]
    theirs = [x.clone().requires_grad_() for x in (a, b, scale)]
    loss, expected = info_nce(*ours), open_clip.loss.ClipLoss()(*theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_processes_average_to_the_loss_of_the_whole(processes: int) -> None:
    a, b = unit_rows(8, 5)
    size = 8 // processes
    shares, accuracies = [], []
    for rank in range(processes):
        rows = slice(rank * size, (rank + 1) * size)
        everyone = {"all_a": a, "all_b": b, "offset": rank * size}
        shares.append(info_nce(a[rows], b[rows], 7.0, **everyone))  # type: ignore[arg-type]
        accuracies.append(torch.stack(info_nce_accuracy(a[rows], b[rows], **everyone)))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack(shares).mean(), info_nce(a, b, 7.0))
    torch.testing.assert_close(torch.stack(accuracies).mean(0), torch.stack(info_nce_accuracy(a, b)))
    if processes > 1:
        without = [info_nce(a[r : r + size], b[r : r + size], 7.0) for r in range(0, 8, size)]
        assert abs(torch.stack(without).mean() - info_nce(a, b, 7.0)) > 0.1


def test_gradients_are_those_of_differences() -> None:
    a, b = unit_rows(4, 3)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (a.requires_grad_(), b.requires_grad_(), scale))
    more_a, more_b = unit_rows(7, 3, seed=1)

    def among_others(a: torch.Tensor, b: torch.Tensor, all_a: torch.Tensor, all_b: torch.Tensor) -> torch.Tensor:
        return info_nce(a, b, 5.0, all_a=all_a, all_b=all_b, offset=2)

    assert torch.autograd.gradcheck(among_others, (a, b, more_a.requires_grad_(), more_b.requires_grad_()))


def test_invariances() -> None:
    a, b = unit_rows(9, 6)
    loss = info_nce(a, b, 12.0)
    torch.testing.assert_close(info_nce(b, a, 12.0), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(info_nce(a[order], b[order], 12.0), loss)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    torch.testing.assert_close(info_nce(a @ rotation, b @ rotation, 12.0), loss)
    assert abs(info_nce(a[order], b, 12.0) - loss) > 0.1  # the pairing matters


@pytest.mark.parametrize("n", [1, 2, 13])
def test_collapse_costs_ln_n_and_scores_chance(n: int) -> None:
    a = F.normalize(torch.ones(n, 4, dtype=torch.float64), dim=-1)
    assert info_nce(a, a.clone(), 100.0).item() == pytest.approx(math.log(n), abs=1e-12)
    assert [float(x) for x in info_nce_accuracy(a, a.clone())] == pytest.approx([1 / n, 1 / n])


def test_perfect_alignment_costs_nothing_and_scores_one() -> None:
    a = torch.eye(6, dtype=torch.float64)
    assert info_nce(a, a.clone(), 100.0).item() == pytest.approx(0, abs=1e-12)
    assert [float(x) for x in info_nce_accuracy(a, a.clone())] == [1, 1]
    assert [float(x) for x in info_nce_accuracy(a, a.roll(1, 0))] == [0, 0]


def test_accuracy_has_two_directions() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    there, back = info_nce_accuracy(a, b)  # b_0 is nearer to a_1; from each a its own b is nearest
    assert (there.item(), back.item()) == (1.0, 0.5)


def test_large_scales_stay_finite_in_float32() -> None:
    a, b = unit_rows(32, 8, dtype=torch.float32)
    a.requires_grad_()
    loss = info_nce(a, b, 1e4)
    loss.backward()
    assert loss.isfinite()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"b": torch.zeros(3, 2)}, "wanted equal shapes"),
        ({"all_a": torch.zeros(8, 2)}, "wanted equal numbers"),
        ({"offset": 1}, "rank \\* B"),
        ({"offset": -1}, "rank \\* B"),
        ({"a": torch.zeros(4, 2, 1), "b": torch.zeros(4, 2, 1)}, r"wanted \[B, E\]"),
        ({"all_a": torch.zeros(8, 3), "all_b": torch.zeros(8, 3)}, r"wanted \[B, E\] and \[G, E\]"),
    ],
)
def test_misuse_is_refused(arguments: dict[str, object], complaint: str) -> None:
    given: dict[str, object] = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)} | arguments
    with pytest.raises(ValueError, match=complaint):
        info_nce(scale=1.0, **given)  # type: ignore[arg-type]
