"""Sharding of parameters, gradients and optimizer moments over processes (FSDP2, ZeRO-2), and gathering of full tensors.

Every encoder, wherever it is in the learner, is sharded with torch's `fully_shard`: each block is gathered when needed and freed
again. Everything else (heads, temperatures, queues) is replicated on every process, because criteria and updates of objectives use
it directly; `average_gradients` averages its gradients. Matrix products keep autocast's precision, and weights are gathered in
float32, so that the numbers equal those of other parallel modes.
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
from mmssl.core.distributed import gather_detached, is_main, local_shard, total_detached, world_size
from mmssl.core.encoder import Encoder, Features

# Weights are gathered for the backward pass by hooks on outputs: torch 2.11 finds tensors only in outputs that pytree can open.
torch.export.register_dataclass(Features)


def shard_encoders(module: nn.Module, mesh: DeviceMesh, *, reshard: bool) -> None:
    """Shard the encoders of a module in place with `fully_shard`; it must be on its device and equal on all processes.

    Args:
        module: a learner or its average.
        mesh: one-dimensional, over all processes.
        reshard: free gathered weights after the forward pass and gather them again for the backward pass (ZeRO-3); False: they
            stay in between (ZeRO-2).
    """
    # The warning is of views that are changed in place afterwards, which nothing does to the output of an encoder or block.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    outermost = [e for e in encoders if not any(e is not other and e in set(other.modules()) for other in encoders)]
    for encoder in outermost:
        # fully_shard knows no parameters without a dimension; they stay whole.
        scalars = {parameter for parameter in encoder.parameters() if parameter.ndim == 0}
        for part in [*encoder_blocks(encoder), encoder]:
            fully_shard(part, mesh=mesh, reshard_after_forward=reshard, ignored_params=scalars)


def encoder_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of an encoder: modules inside a list or sequence whose submodules have parameters."""
    found: list[nn.Module] = []
    for child in encoder.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            for part in child:
                inner = any(any(True for _ in grandchild.parameters()) for grandchild in part.children())
                found += (
                    [part] if inner and not isinstance(part, nn.ModuleList | nn.Sequential) else encoder_blocks(part)
                )
        else:
            found += encoder_blocks(child)
    return found


def fsdp_modules(module: nn.Module) -> list[FSDPModule]:
    """The submodules that FSDP gathers and frees separately."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Context with all weights gathered on every process: each may call the module any number of times, without gradient."""
    parts = fsdp_modules(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        free_gathered(module)


def free_gathered(module: nn.Module) -> None:
    """Free gathered weights, also after a forward pass without a backward pass (a teacher's)."""
    for part in fsdp_modules(module):
        part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, in the main process' host memory; empty elsewhere. Plain tensors are returned as they are.

    Every process must call.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main() else full.new_empty(0)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, equal on all processes, as `like` is; reverses `full_tensor`."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    full = full.to(like.to_local().device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict of full tensors. Every process must call."""
    return {name: full_tensor(tensor) for name, tensor in module.state_dict().items()}


def full_moments(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict of full tensors. Every process must call."""
    state = optimizer.state_dict()
    return {**state, "state": {number: _each(full_tensor, entry) for number, entry in state["state"].items()}}


def shard_moments(state: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Moments from a checkpoint, sharded like their parameters; reverses `full_moments`."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    return {number: _each(lambda x, p=parameters[number]: shard_like(x, p), entry) for number, entry in state.items()}


def _each(function: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function(value) if isinstance(value, Tensor) else value for name, value in entry.items()}


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """All-reduce (mean) the gradients of unsharded parameters, in one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not gradients:
        return
    flat = total_detached(torch.cat([gradient.reshape(-1) for gradient in gradients])) / world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, equal on all processes. Every process must call if some are sharded."""
    split = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not split:
        return get_total_norm(gradients)
    rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    everyone = gather_detached(get_total_norm(split).reshape(1))
    together: Tensor = torch.cat([everyone, get_total_norm(rest).reshape(1)] if rest else [everyone]).norm()
    return together


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], most: float, total: Tensor) -> None:
    """Clip gradients, whose norm is `total`, to the norm `most`, as `torch.nn.utils.clip_grads_with_norm_` does."""
    factor = (most / (total + 1e-6)).clamp(max=1.0)
    scale_each([local_shard(gradient) for gradient in gradients], factor)
