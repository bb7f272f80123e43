"""Teacher: a network that follows another one by an exponential moving average (EMA), without gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.core.compat import BatchNorm, copy_each, lerp_each
from mmssl.core.distributed import local_shard

Momentum = Callable[[int], float]
"""Share of the teacher that stays at the update of a 0-based step. Equal schedules must compare equal."""


@torch.no_grad()
def move_towards(
    averages: Iterable[Tensor], live: Iterable[Tensor], share: float | Tensor, skip: Tensor | None = None
) -> None:
    """Move each average by `share` of the way to its live tensor, in place; both may be shards of equal placement.

    Args:
        averages, live, share: what moves, where to, and how far.
        skip: [] bool on the device: nothing moves if it is true; None: it is false.
    """
    own = [local_shard(average.detach()) for average in averages]
    ends = [local_shard(tensor.detach()).to(mine.dtype) for mine, tensor in zip(own, live, strict=True)]
    if skip is None:
        lerp_each(own, ends, float(share))
        return
    # As factors on the device: the host need not wait for the flag.
    weights = {dtype: ((~skip).to(dtype) * share).to(dtype) for dtype in {x.dtype for x in own}}
    lerp_each(own, ends, [weights[x.dtype] for x in own])


class Teacher(nn.Module):
    """A network that follows its student by theta' <- m theta' + (1 - m) theta after every update of the student.

    Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv:1703.01780). In evaluation mode, so that dropout, drop
    path and SpecAugment never act in it, except for batch norm: in training it normalises by the batch, as in MoCo, BYOL and DINO,
    and counts its own running statistics. (By running statistics, its outputs differ from the student's so much that MoCo v2
    learns nothing.) Other buffers are copied from the student. It has no gradient. A `Learner` moves every teacher inside it,
    wherever it stands, after finite steps only.

    Args:
        student: the network to follow; copied now. It is no submodule: its tensors have one name in a checkpoint.
        momentum: m by step, in [0, 1].

    Attributes:
        network: the averaged network.
    """

    def __init__(self, student: nn.Module, momentum: Momentum) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.momentum = momentum
        self._student = (student,)  # in a tuple, so that it is not registered as a submodule
        self.train(student.training)

    @property
    def student(self) -> nn.Module:
        """The network that is followed."""
        return self._student[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the averaged network, without gradient."""
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Set the mode of batch norm; all else stays in evaluation mode."""
        for layer in self.network.modules():
            if isinstance(layer, BatchNorm):
                layer.train(mode)
        return self

    @torch.no_grad()
    def follow(self, step: int, skip: Tensor | None = None) -> None:
        """Move towards the student by the momentum of a 0-based step, and copy its buffers, but for those of batch norm.

        Args:
            step: 0-based.
            skip: [] bool on the device: the parameters do not move if it is true; None: it is false.
        """
        move_towards(self.network.parameters(), self.student.parameters(), 1 - self.momentum(step), skip)
        copy_each(_copied_buffers(self.network), _copied_buffers(self.student))


def _copied_buffers(module: nn.Module) -> list[Tensor]:
    layers = [layer for layer in module.modules() if not isinstance(layer, BatchNorm)]
    return [buffer for layer in layers for buffer in layer.buffers(recurse=False)]


def teachers_in(module: nn.Module) -> dict[str, Teacher]:
    """Name -> teacher, of all teachers inside a module."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Teacher)}


def parts_of_teachers(module: nn.Module) -> set[int]:
    """Ids of the parameters of all teachers inside a module."""
    return {id(parameter) for teacher in teachers_in(module).values() for parameter in teacher.parameters()}
