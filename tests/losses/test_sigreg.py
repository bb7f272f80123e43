"""SIGReg and the invariance of views against their loops, golden and analytic values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.sigreg import random_directions, sigreg, sigreg_of_collapse, sigreg_of_normal, view_invariance
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import GOLDEN, golden_rows, sines
from tests.losses.slow_loop import slow_loop


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def golden_inputs() -> tuple[Tensor, Tensor]:
    """[3, 8, 16] views and [4, 16] directions."""
    z0, z1 = golden_rows()
    return torch.stack([z0, z1, z0 + z1]), F.normalize(sines(4, 16, 0.45, 1.15, 0.31), dim=-1)


@pytest.mark.parametrize(("views", "n", "d", "count"), [(1, 1, 3, 2), (2, 5, 4, 3), (3, 7, 2, 1)])
def test_equals_the_slow_loops(views: int, n: int, d: int, count: int) -> None:
    x = embeddings(views, n, d, seed=n)
    directions = random_directions(x, count, torch.Generator().manual_seed(n))
    assert sigreg(x, directions).item() == pytest.approx(slow_loop(sigreg)(x, directions), rel=1e-12)
    for global_views in range(1, views + 1):
        expected = slow_loop(view_invariance)(x, global_views)
        assert view_invariance(x, global_views).item() == pytest.approx(expected, rel=1e-12, abs=1e-30)


def test_golden_values() -> None:
    x, directions = golden_inputs()
    distance, invariance = sigreg(x, directions).item(), view_invariance(x, 2).item()
    assert distance == pytest.approx(GOLDEN["sigreg_3_views_4_directions"], rel=1e-13)
    assert invariance == pytest.approx(GOLDEN["lejepa_invariance_global_centre"], rel=1e-13)
    assert 0.05 * distance + 0.95 * invariance == pytest.approx(GOLDEN["lejepa_lambda0.05"], rel=1e-13)


@pytest.mark.parametrize("n", [64, 512])
def test_optimum_is_not_zero(n: int) -> None:
    """The mean over draws of normally distributed embeddings is the same for any number of samples."""
    x = embeddings(200, n, 2)
    found = sigreg(x, random_directions(x, 8, torch.Generator().manual_seed(0))).item()
    assert found == pytest.approx(GOLDEN["sigreg_expected_for_gaussian_samples"], rel=0.08)
    assert sigreg_of_normal() == pytest.approx(GOLDEN["sigreg_expected_for_gaussian_samples"], rel=1e-12)


def test_collapse_costs_a_constant_for_each_sample() -> None:
    directions = random_directions(torch.zeros(1, dtype=torch.float64), 5, torch.Generator().manual_seed(0))
    for n in (2, 13):
        collapsed = torch.zeros(2, n, 1, dtype=torch.float64)
        assert sigreg(collapsed, directions).item() == pytest.approx(
            n * GOLDEN["sigreg_collapsed_to_zero_per_sample"], rel=1e-13
        )
        assert sigreg_of_collapse(n) == pytest.approx(n * GOLDEN["sigreg_collapsed_to_zero_per_sample"], rel=1e-13)
        assert view_invariance(collapsed, 2).item() == 0


def test_scale_and_mean_and_dependence_are_seen() -> None:
    """A covariance other than the identity costs more than the optimum, and so does a line through the origin."""
    x = embeddings(1, 512, 2)
    directions = random_directions(x, 64, torch.Generator().manual_seed(1))
    best = sigreg(x, directions)
    line = torch.stack([x[..., 0], x[..., 0]], -1)
    assert all(sigreg(other, directions) > 5 * best for other in (0.5 * x, 2 * x, x + 0.5, line))


def test_gradients_are_those_of_differences() -> None:
    x = embeddings(2, 3, 3).requires_grad_()
    directions = random_directions(x.detach(), 4, torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: sigreg(x, directions), (x,))
    assert torch.autograd.gradcheck(lambda x: view_invariance(x, 1), (x,))
    assert torch.autograd.gradcheck(lambda x: view_invariance(x, 2), (x,))


def test_invariances() -> None:
    x, directions = embeddings(3, 9, 4), random_directions(embeddings(1, 1, 4), 6, torch.Generator().manual_seed(0))
    loss = sigreg(x, directions)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sigreg(x[:, order], directions), loss)
    torch.testing.assert_close(sigreg(x[[2, 0, 1]], directions), loss)
    torch.testing.assert_close(sigreg(-x, directions), loss)
    rotation = torch.linalg.qr(embeddings(4, 4, seed=2)).Q
    torch.testing.assert_close(sigreg(x @ rotation, directions @ rotation), loss)
    assert abs(sigreg(x @ rotation, directions) - loss) > 1e-3
    torch.testing.assert_close(view_invariance(x @ rotation + 1, 2), view_invariance(x, 2))
    assert view_invariance(x, 1) > view_invariance(x, 3)


def of_one_process(rows: int) -> tuple[float, Tensor]:
    """The value, and the gradient of the mean over processes for this process' rows."""
    x = embeddings(2, 2 * rows, 3)
    rank = torch.distributed.get_rank()
    own = x[:, rank * rows : (rank + 1) * rows].clone().requires_grad_()
    loss = sigreg(own, random_directions(own.detach(), 4, torch.Generator().manual_seed(0)))
    (loss / WORLD).backward()
    assert own.grad is not None
    return loss.item(), own.grad


def test_two_processes_equal_one(two_processes: Processes) -> None:
    x = embeddings(2, 6, 3).requires_grad_()
    expected = sigreg(x, random_directions(x.detach(), 4, torch.Generator().manual_seed(0)))
    expected.backward()
    assert x.grad is not None
    results = two_processes.run(of_one_process, [(3,)] * WORLD)
    assert [loss for loss, _ in results] == pytest.approx([expected.item()] * WORLD, rel=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results], 1), x.grad)


def test_directions_are_unit_norm_uniform_and_a_function_of_the_seed() -> None:
    like = torch.zeros(1, 3)
    drawn = random_directions(like, 20_000, torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(20_000))
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T @ drawn / 20_000, torch.eye(3) / 3, atol=0.02, rtol=0)
    torch.manual_seed(1)
    assert torch.equal(random_directions(like, 20_000, torch.Generator().manual_seed(5)), drawn)
    assert not torch.equal(random_directions(like, 20_000, torch.Generator().manual_seed(6)), drawn)


@pytest.mark.parametrize(("x", "directions"), [((4, 2), (3, 2)), ((2, 4, 2), (3, 4)), ((2, 4, 2), (2,))])
def test_misuse_is_refused(x: tuple[int, ...], directions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[V, B, E\] and \[A, E\]"):
        sigreg(torch.zeros(x), torch.zeros(directions))
