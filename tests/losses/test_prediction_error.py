"""The error of predicted embeddings against its loop and analytic values, and over processes with different numbers of samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.losses.prediction_error import prediction_error
from tests.distributed.processes import WORLD, Processes
from tests.losses.inputs import rows
from tests.losses.slow_loop import slow_loop

ALL = torch.ones(6, dtype=torch.bool)
SOME = torch.tensor([True, True, False, True, False, False])  # 2 of the first half, 1 of the second


@pytest.mark.parametrize("present", [ALL, SOME, ~ALL])
def test_equals_the_slow_loop(present: Tensor) -> None:
    prediction, target = rows(6, 4)
    expected = slow_loop(prediction_error)(prediction, target, present)
    assert prediction_error(prediction, target, present).item() == pytest.approx(expected, rel=1e-12, abs=0)


def test_analytic_values() -> None:
    target = rows(6, 4)[1]
    assert prediction_error(target, target, ALL).item() == 0
    assert prediction_error(target + 3, target, SOME).item() == pytest.approx(9)
    normal = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    everyone = torch.ones(len(normal), dtype=torch.bool)
    assert prediction_error(torch.zeros_like(normal), normal, everyone).item() == pytest.approx(1, rel=0.02)


def test_gradients_are_those_of_differences_and_none_flows_to_the_target_or_absent_samples() -> None:
    prediction, target = (x.requires_grad_() for x in rows(6, 4))
    assert torch.autograd.gradcheck(lambda x: prediction_error(x, target, SOME), (prediction,))
    prediction_error(prediction, target, SOME).backward()
    assert target.grad is None
    assert prediction.grad is not None
    assert torch.equal((prediction.grad != 0).any(1), SOME)


def of_one_process() -> tuple[float, Tensor]:
    """This process' share, and the gradient of the mean over processes for its rows."""
    part = slice(3 * torch.distributed.get_rank(), 3 * torch.distributed.get_rank() + 3)
    prediction, target = (x[part].clone().requires_grad_() for x in rows(6, 4))
    loss = prediction_error(prediction, target, SOME[part])
    (loss / WORLD).backward()
    assert prediction.grad is not None
    return loss.item(), prediction.grad


def test_two_processes_equal_one(two_processes: Processes) -> None:
    prediction, target = rows(6, 4)
    prediction.requires_grad_()
    expected = prediction_error(prediction, target, SOME)
    expected.backward()
    results = two_processes.run(of_one_process, [()] * WORLD)
    assert sum(loss for loss, _ in results) / WORLD == pytest.approx(expected.item(), rel=1e-12)
    assert prediction.grad is not None
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), prediction.grad)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, E\], \[B, E\] and \[B\]"):
        prediction_error(torch.zeros(4, 2), torch.zeros(1, 2), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"wanted \[B, E\], \[B, E\] and \[B\]"):
        prediction_error(torch.zeros(4, 2), torch.zeros(4, 2), torch.ones(3, dtype=torch.bool))
