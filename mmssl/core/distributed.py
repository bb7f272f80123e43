"""Collectives (all-gather, all-reduce, broadcast), with and without gradient. In one process each is the identity.

Convention: a criterion returns this process' share, such that the *mean* over processes is the loss of the global batch, and
data parallelism averages gradients. Under it the backward pass of `gather` sums the cotangents of all processes, and both
encoder and temperature gradients equal those of one process on the global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmssl.core.errors import Interrupted, MmsslError, for_people

log = logging.getLogger(__name__)

T = TypeVar("T")


def world_size() -> int:
    """W, the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process' number, 0 ... W-1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def follow_main(tensors: Iterable[Tensor]) -> None:
    """Broadcast the main process' values to every process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dense = tensor.contiguous()
            dist.broadcast(dense, 0)
            if dense is not tensor:
                tensor.copy_(dense)


def gather(x: Tensor) -> Tensor:
    """All-gather with gradient: [B, ...] of each process -> [G, ...] in the order of ranks. B must be equal on all processes."""
    return _Gather.apply(x) if world_size() > 1 else x


def total(x: Tensor) -> Tensor:
    """All-reduce (sum) with gradient: the cotangents of all processes are summed too."""
    return _Total.apply(x) if world_size() > 1 else x


@torch.no_grad()
def gather_detached(x: Tensor) -> Tensor:
    """All-gather without gradient: [B, ...] of each process -> [G, ...] in the order of ranks."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def total_detached(x: Tensor) -> Tensor:
    """All-reduce (sum) without gradient; `x` itself is not changed."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def count(x: Tensor, least: int = 0) -> Tensor | int:
    """Number of rows of all processes, which may have different numbers of them; `least` if there are fewer."""
    if world_size() == 1:
        return max(len(x), least)
    exact = x.dtype if x.dtype == torch.float64 else torch.float32
    return total_detached(torch.tensor(float(len(x)), device=x.device, dtype=exact)).clamp(min=least)


def mean(x: Tensor) -> Tensor:
    """This process' share of the mean of [n] numbers of each process over all of them; 0, with a graph, if there are none."""
    return x.sum() * (world_size() / count(x, least=1))


@torch.no_grad()
def sum_and_count(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [...] and number [] of the rows of [n, ...] of all processes, without gradient, in one all-reduce."""
    sums = total_detached(torch.cat([x.detach().sum(0).flatten(), x.new_full((1,), float(len(x)))]))
    return sums[:-1].view(x.shape[1:]), sums[-1]


@torch.no_grad()
def gather_uneven(x: Tensor) -> Tensor:
    """All-gather without gradient where processes may have different numbers of rows; in the order of ranks."""
    if world_size() == 1:
        return x.detach()
    counts = gather_objects(len(x))
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: len(x)] = x
    parts = gather_detached(padded[None])
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def local_shard(tensor: Tensor) -> Tensor:
    """This process' shard of a DTensor (the same memory), or a plain tensor itself. Call it without gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_objects(value: Any) -> list[Any]:
    """All-gather one small picklable value of each process, in the order of ranks. Pickles come from this run's processes only.

    Raises:
        FailedElsewhere: a process failed within `attempt`, so it never joins this collective.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    failure = next((one for one in values if isinstance(one, _Failure)), None)
    if failure is not None:
        raise FailedElsewhere(failure.error)
    return values


class FailedElsewhere(Exception):
    """Raised by `gather_objects` where a process failed; `error` is that of the lowest rank that did."""

    def __init__(self, error: MmsslError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _Failure:
    """Sent by a failed process in place of its value."""

    error: MmsslError


def attempt(action: Callable[[], T]) -> T | MmsslError:
    """Run `action` on every process and return its value; if it fails on one process, all return that error and none hangs.

    The process that fails answers the next `gather_objects` of the others with its error. So `action` may use any collective,
    but work that can fail on one process alone must be followed by a `gather_objects` before a collective of tensors. Errors
    that are neither MmsslError nor ValueError are logged with their traceback.

    Raises:
        Interrupted: a process was asked to stop.
    """
    value, error = None, None
    try:
        try:
            value = action()
        except FailedElsewhere:
            raise
        except Exception as caught:
            error = for_people(caught)
            if not isinstance(caught, MmsslError | ValueError):
                log.error("%s", error, exc_info=True)
        gather_objects(None if error is None else _Failure(error))
    except FailedElsewhere as elsewhere:
        error = elsewhere.error
    if isinstance(error, Interrupted):
        raise error
    return cast(T, value) if error is None else error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather_detached(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # [G, ...] cotangents of each process -> the sum of their slices for this process' rows, [B, ...].
        gradient = gradient.contiguous()
        if dist.get_backend() == "nccl":
            out = gradient.new_empty((ctx.rows, *gradient.shape[1:]))
            dist.reduce_scatter_tensor(out, gradient)
            return out
        return total_detached(gradient)[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total_detached(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total_detached(gradient.contiguous())
