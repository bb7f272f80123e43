"""Global batch norm: torch's batch norm in one process, and the same numbers in two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.batch_norm import GlobalBatchNorm
from tests.distributed.processes import Processes


def rows(n: int = 12, width: int = 5, offset: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=random) * torch.tensor([0.1, 1, 2, 5, 10]) + offset


def weighted_sum(out: Tensor, start: int = 0) -> Tensor:
    """A loss that treats rows and features differently, so that no gradient cancels."""
    weights = torch.sin(torch.arange(12 * 5.0)).view(12, 5)[start : start + len(out)]
    return (out.square() * weights + out * weights.cos()).sum()


def build() -> GlobalBatchNorm:
    module = GlobalBatchNorm(5)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, 5))  # type: ignore[union-attr]
        module.bias.copy_(torch.linspace(-1, 1, 5))  # type: ignore[union-attr]
    return module


def forward_and_backward(x: Tensor, start: int) -> dict[str, Tensor]:
    module = build()
    x.requires_grad_()
    out = module(x)
    weighted_sum(out, start).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"out": out.detach(), "x": x.grad, **gradients}


@pytest.mark.parametrize("affine", [True, False])
def test_equals_torch_in_one_process(affine: bool) -> None:
    ours, theirs = GlobalBatchNorm(5, affine=affine).double(), nn.BatchNorm1d(5, affine=affine).double().train()
    assert sorted(dict(ours.named_parameters())) == sorted(dict(theirs.named_parameters()))
    x, y = rows().double().requires_grad_(), rows().double().requires_grad_()
    torch.testing.assert_close(ours(x), theirs(y))
    weighted_sum(ours(x)).backward()
    weighted_sum(theirs(y)).backward()
    torch.testing.assert_close(x.grad, y.grad)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)


def test_two_processes_equal_one(two_processes: Processes) -> None:
    x = rows()
    whole = forward_and_backward(x.clone(), 0)
    first, second = two_processes.run(forward_and_backward, [(x[:6], 0), (x[6:], 6)])
    for name in ("out", "x"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], rtol=1e-5, atol=1e-5)
    for name in ("weight", "bias"):
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-5, atol=1e-5)
    apart = torch.cat([build()(x[:6]), build()(x[6:])])
    assert (apart - whole["out"]).abs().max() > 0.1  # statistics of each process alone are others


def test_variance_survives_a_large_mean() -> None:
    far = GlobalBatchNorm(5)(rows(offset=1e4))
    torch.testing.assert_close(far.std(0, correction=0)[2:], torch.ones(3), rtol=1e-2, atol=0)
    assert far.mean(0).abs().max() < 0.05


def test_keeps_no_state_and_ignores_the_mode() -> None:
    module = GlobalBatchNorm(5)
    assert dict(module.named_buffers()) == {}
    assert torch.equal(module.train()(rows()), module.eval()(rows()))


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 row over all processes"):
        GlobalBatchNorm(5)(rows(1))
