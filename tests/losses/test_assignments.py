"""Cross entropy of assignments between views against its loop, the code of DINO, golden and analytic values; the metrics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.assignments import (
    assignment_metrics,
    masked_assignment_cross_entropy,
    mean_entropy,
    perplexity,
    view_cross_entropy,
)
from mmssl.losses.sinkhorn import sinkhorn
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import golden_rows, sines
from tests.losses.slow_loop import slow_loop

# ssl-golden-values: DINO of 2 teacher and 3 student views at 0.04 and 0.1, SwAV of 2 global views and a local one; equal to
# lightly 1.6.0 DINOLoss and SwaVLoss to 0.
GOLDEN_DINO, GOLDEN_SWAV = 18.752157277049925, 3.393177261264518


def views(t: int, v: int, n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    targets = torch.randn(t, n, k, generator=random, dtype=torch.float64).softmax(-1)
    return targets, torch.randn(v, n, k, generator=random, dtype=torch.float64)


@pytest.mark.parametrize(("t", "v", "n", "k"), [(1, 2, 3, 4), (2, 2, 5, 3), (2, 6, 3, 4), (3, 4, 1, 2)])
def test_equals_the_slow_loop(t: int, v: int, n: int, k: int) -> None:
    targets, scores = views(t, v, n, k, seed=v)
    expected = slow_loop(view_cross_entropy)(targets, scores, 0.3)
    assert view_cross_entropy(targets, scores, 0.3).item() == pytest.approx(expected, rel=1e-12)


def test_golden_values() -> None:
    z0, z1 = golden_rows()
    students = torch.stack([z0, z1, z0 + z1])
    teachers = torch.stack([sines(8, 16, 0.3, 0.8, 0.11), sines(8, 16, 0.6, 0.2, 0.19)])
    loss = view_cross_entropy((teachers / 0.04).softmax(-1), students, 0.1)
    assert loss.item() == pytest.approx(GOLDEN_DINO, rel=1e-14)
    scores = F.normalize(students, dim=-1) @ F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=-1).T
    codes = torch.stack([sinkhorn(x, 0.05, 3) for x in scores[:2]])
    assert view_cross_entropy(codes, scores, 0.1).item() == pytest.approx(GOLDEN_SWAV, rel=1e-12)


def test_analytic_values() -> None:
    targets, scores = views(2, 5, 4, 6)
    assert view_cross_entropy(targets, torch.zeros_like(scores), 0.1).item() == pytest.approx(math.log(6))
    one_hot = F.one_hot(torch.arange(4), 6).double().expand(2, 4, 6)
    assert view_cross_entropy(one_hot, 1000 * one_hot, 1.0).item() == pytest.approx(0)
    same = targets[:1].expand(2, 4, 6)
    assert view_cross_entropy(same, same.log(), 1.0).item() == pytest.approx(mean_entropy(same).item())


def test_no_view_predicts_itself() -> None:
    targets, scores = views(1, 2, 4, 3)
    loss = view_cross_entropy(targets, scores, 0.5)
    assert view_cross_entropy(targets, torch.stack([7 - scores[0], scores[1]]), 0.5) == loss
    assert view_cross_entropy(targets, torch.stack([scores[0], 7 - 2 * scores[1]]), 0.5) != loss


def test_gradients_are_those_of_differences_and_none_flows_to_the_targets() -> None:
    targets, scores = views(2, 3, 2, 3)
    assert torch.autograd.gradcheck(lambda x: view_cross_entropy(targets, x, 0.5), (scores.requires_grad_(),))
    targets.requires_grad_()
    view_cross_entropy(targets, scores, 0.5).backward()
    assert targets.grad is None


@pytest.mark.parametrize(
    ("targets", "scores"),
    [((1, 4, 3), (1, 4, 3)), ((3, 4, 3), (2, 4, 3)), ((0, 4, 3), (2, 4, 3)), ((2, 4, 3), (2, 4, 2)), ((4, 3), (4, 3))],
)
def test_misuse_is_refused(targets: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[T, n, K\] and \[V, n, K\]"):
        view_cross_entropy(torch.zeros(targets), torch.zeros(scores), 0.1)


def test_metrics_of_a_uniform_and_of_a_single_assignment() -> None:
    uniform = torch.full((2, 5, 8), 1 / 8, dtype=torch.float64)
    single = F.one_hot(torch.zeros(5, dtype=torch.long), 8).double().expand(2, 5, 8)
    loss = torch.tensor(2.5, dtype=torch.float64)
    found = {name: x.item() for name, x in assignment_metrics(loss, uniform, uniform).items()}
    assert found == pytest.approx(
        {
            "target_entropy": math.log(8),
            "kl": 2.5 - math.log(8),
            "prototypes_used": 8,
            "prototypes_used_least": 1.5,
            "chance_loss": math.log(8),
        }
    )
    found = {name: x.item() for name, x in assignment_metrics(loss, single, single).items()}
    assert found == pytest.approx(
        {"target_entropy": 0, "kl": 2.5, "prototypes_used": 1, "prototypes_used_least": 1.5, "chance_loss": math.log(8)}
    )


def test_prototypes_used_counts_those_of_all_samples() -> None:
    """Each sample has one prototype, and three of eight have samples."""
    rows = F.one_hot(torch.tensor([0, 1, 4, 0, 1, 4]), 8).double()
    assert perplexity(rows).item() == pytest.approx(3)
    assert perplexity(rows.view(2, 3, 8)).item() == pytest.approx(3)
    assert mean_entropy(rows).item() == 0


def test_metrics_of_no_rows_are_finite() -> None:
    nothing = torch.zeros(2, 0, 8)
    assert mean_entropy(nothing) == 0
    assert perplexity(nothing) == 1


def of_one_process(first: int) -> tuple[float, Tensor, dict[str, float]]:
    """The share, the gradient of the mean over processes for this process' rows, and the metrics."""
    targets, scores = views(2, 3, 7, 4)
    own = slice(0, first) if torch.distributed.get_rank() == 0 else slice(first, 7)
    rows = scores[:, own].clone().requires_grad_()
    loss = view_cross_entropy(targets[:, own], rows, 0.2)
    (loss / WORLD).backward()
    assert rows.grad is not None
    metrics = assignment_metrics(loss.detach(), targets[:, own], targets[:, own])
    return loss.item(), rows.grad, {name: x.item() for name, x in metrics.items()}


@pytest.mark.parametrize("first", [3, 7])
def test_two_processes_equal_one(two_processes: Processes, first: int) -> None:
    targets, scores = views(2, 3, 7, 4)
    expected = view_cross_entropy(targets, scores.requires_grad_(), 0.2)
    expected.backward()
    assert scores.grad is not None
    metrics = {name: x.item() for name, x in assignment_metrics(expected.detach(), targets, targets).items()}
    results = two_processes.run(of_one_process, [(first,)] * WORLD)
    assert sum(loss for loss, _, _ in results) / WORLD == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient, _ in results], 1), scores.grad)
    assert [found for _, _, found in results] == [pytest.approx(metrics, rel=1e-12)] * WORLD


GOLDEN_IBOT = {"centred": 5.223997284796577, "sinkhorn": 5.461649108478783}
"""ssl-golden-values-2: 4 pictures, 2 without masked patches, as DINOv2 weighs them; equal to its code and lightly's to 2e-15."""


@pytest.mark.parametrize("how", GOLDEN_IBOT)
def test_golden_values_and_loop_of_masked_patches(how: str) -> None:
    scores, teacher = golden_rows()[0][:6], sines(8, 16, 0.3, 0.8, 0.11)[:6]
    mask = torch.tensor([[True] * 3] * 2 + [[False] * 3] * 2)
    centre = 0.1 * sines(1, 16, 0.5, 0.9, 0.0)
    targets = ((teacher - centre) / 0.07).softmax(-1) if how == "centred" else sinkhorn(teacher, 0.07, 3)
    loss = masked_assignment_cross_entropy(targets, scores, mask, 0.1)
    assert loss.item() == pytest.approx(GOLDEN_IBOT[how], rel=1e-12)
    uneven = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = slow_loop(masked_assignment_cross_entropy)(targets, scores, uneven, 0.1)
    assert masked_assignment_cross_entropy(targets, scores, uneven, 0.1).item() == pytest.approx(expected, rel=1e-12)
    uniform = torch.full_like(scores, 1 / 16)
    assert masked_assignment_cross_entropy(uniform, 0 * scores, mask, 0.1).item() == pytest.approx(math.log(16) / 2)
