"""Synchronised batch normalisation: torch's own in one process, and one process' numbers on two."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch_norm import SyncBatchNorm, synchronise_batch_norm
from mmssl.core.errors import RecipeError
from tests.distributed.processes import Processes
from tests.training.toys import Match, make_learner, make_run, tensors

LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "2d": (lambda: nn.BatchNorm2d(3, momentum=None), (6, 3, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(3, affine=False, eps=1e-3), (6, 3, 2, 2, 2)),
    "untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (6, 3, 4, 5)),
}


def passes(layer: nn.Module, x: Tensor, start: int, stop: int) -> dict[str, Any]:
    """Two passes in training and one in evaluation: outputs, gradients and buffers."""
    x = x[start:stop].clone().requires_grad_()
    outputs = [layer(x), layer(2 * x + 1)]
    loss = sum((out * torch.arange(out.numel()).view_as(out).cos()).sum() for out in outputs)
    loss.backward()
    layer.eval()
    named = {f"gradient.{name}": distributed.total_detached(p.grad) for name, p in layer.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return {"x": x.grad, "out": outputs[1].detach(), "eval": layer(x).detach(), **named, **buffers}


def layer_and_input(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = nn.Sequential(make()).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, torch.randn(shape, dtype=torch.float64) + 3


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_torchs_in_one_process(kind: str) -> None:
    theirs, x = layer_and_input(kind)
    ours = copy.deepcopy(theirs)
    assert synchronise_batch_norm(ours) == 1
    assert isinstance(ours[0], SyncBatchNorm)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    expected, got = (passes(layer, x, 0, len(x)) for layer in (theirs, ours))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12, msg=name)


def uneven(kind: str) -> dict[str, Any]:
    """The first process has two rows, the second four; a loss of each row alone, so that shares are rows of one whole."""
    layer, x = layer_and_input(kind)
    synchronise_batch_norm(layer)
    rows = (0, 2) if distributed.is_main() else (2, 6)
    x = x[slice(*rows)].clone().requires_grad_()
    (layer(x) * x.detach().cos()).sum().backward()
    return {"x": x.grad, **{name: distributed.total_detached(p.grad) for name, p in layer.named_parameters()}} | {
        name: buffer.clone() for name, buffer in layer.named_buffers()
    }


@pytest.mark.parametrize("kind", LAYERS)
def test_two_processes_are_one_with_uneven_rows(two_processes: Processes, kind: str) -> None:
    layer, x = layer_and_input(kind)
    x.requires_grad_()
    (layer(x) * x.detach().cos()).sum().backward()
    expected = {name: p.grad for name, p in layer.named_parameters()} | dict(layer.named_buffers())
    first, second = two_processes.run(uneven, [(kind,)] * 2)
    torch.testing.assert_close(torch.cat([first["x"], second["x"]]), x.grad, rtol=1e-10, atol=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12, msg=name)
        assert torch.equal(first[name], second[name])


def trained(folder: str) -> dict[str, Tensor]:
    learner = make_learner(Match)
    for tower in learner.encoders.values():
        tower.dropout.p = 0.0
    changes = {"optimizer": {"kind": "adamw", "lr": 0.01, "eps": 1e-3}, "sync_batch_norm": True}
    run = make_run(Path(folder), 5, learner=learner, **changes)
    run.train()
    return tensors(run)


def test_a_run_of_two_processes_is_that_of_one(two_processes: Processes, tmp_path: Path) -> None:
    one = trained(str(tmp_path / "one"))
    first, second = two_processes.run(trained, [(str(tmp_path / "two"),)] * 2)
    assert "learner.encoders.a.norm.running_var" in one
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(first[name], second[name])


def said(folder: str, sync: bool) -> list[str]:
    with mock.patch("mmssl.training.run.say") as say:
        make_run(Path(folder), learner=make_learner(Match), sync_batch_norm=sync)
    return [call.args[0] for call in say.call_args_list]


def test_a_result_that_depends_on_the_number_of_processes_is_announced(
    two_processes: Processes, tmp_path: Path
) -> None:
    assert said(str(tmp_path), False) == []
    for messages in two_processes.run(said, [(str(tmp_path), False)] * 2):
        assert len(messages) == 1
        assert "batch normalisation in ['a', 'b'] sees the samples of one process at a time" in messages[0]
    assert two_processes.run(said, [(str(tmp_path), True)] * 2) == [[], []]


def test_half_precision_is_normalised_in_full() -> None:
    layer, x = layer_and_input("2d")
    synchronise_batch_norm(layer.float())
    exact, rough = layer(x.float()), layer(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0.05)


class Activated(nn.BatchNorm2d):
    """Batch normalisation and something else."""


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got Activated '0', wanted plain batch norm"):
        synchronise_batch_norm(nn.Sequential(Activated(3)))
    with pytest.raises(RecipeError, match="sync_batch_norm has no effect"):
        make_run(tmp_path, learner=make_learner(noise=False), sync_batch_norm=True)
    with pytest.raises(RecipeError, match=r"SyncBatchNorm 'encoders\.a\.norm'.* one micro-batch"):
        make_run(tmp_path, sync_batch_norm=True, step={"kind": "cached", "micro_batches": 2})
    layer = SyncBatchNorm(3)
    with pytest.raises(ValueError, match=r"of 3 features got shape \[2, 4\], wanted \[B, 3"):
        layer(torch.ones(2, 4))
    with pytest.raises(ValueError, match="got 1 value of each feature"):
        layer(torch.ones(1, 3))
