"""Parameters, gradients and moments that are split over processes (FSDP2, ZeRO-2), and their whole values where one is needed.

Every encoder, wherever it stands in the learner, is split with torch's `fully_shard`: each of its blocks is gathered when it is
needed and let go again. All else (heads, temperatures, queues) stays whole on every process, because criteria and updates of
objectives work with it directly; what the encoders are to data parallelism, `average` is to these parameters. Matrix products keep
the precision that autocast gives them, and weights are gathered in float32, so that the numbers are those of other launches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mmssl.core.compat import scale_each
from mmssl.core.distributed import gather_detached, is_main, total_detached, world_size
from mmssl.core.encoder import Encoder, Features

# Weights are gathered for the backward pass by hooks on outputs: torch 2.11 finds tensors only in outputs that pytree can open.
torch.export.register_dataclass(Features)


def shard(module: nn.Module, mesh: DeviceMesh, *, reshard: bool) -> None:
    """Split the encoders of a module, which is on its device and equal on all processes, in place.

    Args:
        module: a learner or its average.
        mesh: one-dimensional, over all processes.
        reshard: let gathered weights go after the forward pass and gather them again for the backward pass (ZeRO-3); without,
            they stay in between (ZeRO-2).
    """
    # The warning is of views that are changed in place afterwards, which nothing does to the output of an encoder or block.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    outermost = [e for e in encoders if not any(e is not other and e in set(other.modules()) for other in encoders)]
    for encoder in outermost:
        # fully_shard knows no parameters without a dimension; they stay whole.
        scalars = {parameter for parameter in encoder.parameters() if parameter.ndim == 0}
        for part in [*blocks(encoder), encoder]:
            fully_shard(part, mesh=mesh, reshard_after_forward=reshard, ignored_params=scalars)


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """The repeated parts of an encoder: modules that are made of others with parameters, and that stand in a list or sequence."""
    found: list[nn.Module] = []
    for child in encoder.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            for part in child:
                inner = any(any(True for _ in grandchild.parameters()) for grandchild in part.children())
                found += [part] if inner and not isinstance(part, nn.ModuleList | nn.Sequential) else blocks(part)
        else:
            found += blocks(child)
    return found


def sharded(module: nn.Module) -> list[FSDPModule]:
    """The parts of a module that are gathered and let go on their own."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """All weights whole on every process, so that processes may call the module as often as each likes, without gradient."""
    parts = sharded(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        release(module)


def release(module: nn.Module) -> None:
    """Let go of gathered weights, also of those that a forward pass without a backward pass has left (a teacher's)."""
    for part in sharded(module):
        part.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process' share of a tensor, sharing its memory; a tensor that is not split as it is. Call it without gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is split, in the main process' host memory; elsewhere an empty tensor. Others as they are.

    Every process must call.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main() else full.new_empty(0)


def share(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, split as `like` is; reverses `whole`."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    full = full.to(like.to_local().device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict of whole tensors. Every process must call."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def whole_moments(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict of whole tensors. Every process must call."""
    state = optimizer.state_dict()
    return {**state, "state": {number: _each(whole, entry) for number, entry in state["state"].items()}}


def shared_moments(state: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Moments from a checkpoint, split as the parameters that they belong to; reverses `whole_moments`."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    return {number: _each(lambda x, p=parameters[number]: share(x, p), entry) for number, entry in state.items()}


def _each(function: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function(value) if isinstance(value, Tensor) else value for name, value in entry.items()}


@torch.no_grad()
def average(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that are not split over processes, in one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not gradients:
        return
    flat = total_detached(torch.cat([gradient.reshape(-1) for gradient in gradients])) / world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, equal on all processes. Every process must call if some are split."""
    split = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not split:
        return get_total_norm(gradients)
    rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    everyone = gather_detached(get_total_norm(split).reshape(1))
    together: Tensor = torch.cat([everyone, get_total_norm(rest).reshape(1)] if rest else [everyone]).norm()
    return together


@torch.no_grad()
def limit(gradients: Sequence[Tensor], most: float, total: Tensor) -> None:
    """Scale gradients, whose norm is `total`, down to the norm `most`, as `torch.nn.utils.clip_grads_with_norm_` does."""
    factor = (most / (total + 1e-6)).clamp(max=1.0)
    scale_each([local(gradient) for gradient in gradients], factor)
