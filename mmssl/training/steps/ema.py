"""An exponential moving average of the learner, in float32."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.compat import copy_each
from mmssl.core.config import Config
from mmssl.core.distributed import local_shard
from mmssl.core.objective import Learner
from mmssl.core.teacher import move_towards, parts_of_teachers


class EmaConfig(Config):
    """Keep an exponential moving average (EMA) of the weights, which is evaluated and exported.

    Attributes:
        decay: share of the old average that stays at each update.
        warmup: let the decay grow as (1 + n) / (10 + n) over the updates n until it reaches `decay`, so that the random
            start is soon forgotten.
    """

    decay: float = Field(gt=0, lt=1)
    warmup: bool = False

    def build(self, learner: Learner) -> Ema:
        """Build the EMA, a copy of the current learner."""
        return Ema(learner, self.decay, self.warmup)


class Ema:
    """Parameters follow by `average = decay * average + (1 - decay) * parameter`; buffers are copied, and teachers, which are
    averages already.

    Attributes:
        module: the averaged learner, in evaluation mode, without gradients.
        updates: number of updates so far; a tensor [] on the device after an update.
    """

    def __init__(self, learner: Learner, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates: int | Tensor = 0
        self.module = copy.deepcopy(learner).requires_grad_(False).eval()
        for parameter in self.module.parameters():
            parameter.data = parameter.data.float()

    @torch.no_grad()
    def update(self, learner: Learner, skip: Tensor | None = None) -> None:
        """Update the EMA by one step towards the learner.

        Args:
            learner: as the step left it.
            skip: [] bool on the device, whether the step is not counted: parameters then stay; None: it is false.
        """
        averages, copies = _parts(self.module)
        live, originals = _parts(learner)
        move_towards(averages, live, self._share(), skip)
        copy_each(copies, originals)
        self.updates = self.updates + (1 if skip is None else ~skip)

    def _share(self) -> float | Tensor:
        """Share of the way to the learner at the next update."""
        if not self.warmup:
            return 1 - self.decay
        n = torch.as_tensor(self.updates, dtype=torch.float64)
        return 1 - ((1 + n) / (10 + n)).clamp(max=self.decay)

    @torch.no_grad()
    def take_over(self, learner: Learner, names: Sequence[str]) -> None:
        """Copy parameters by name, and all buffers."""
        averages, live = dict(self.module.named_parameters()), dict(learner.named_parameters())
        targets, sources = [averages[name] for name in names], [live[name] for name in names]
        copy_each([*targets, *self.module.buffers()], [*sources, *learner.buffers()])


def _parts(learner: Learner) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters that are averaged, and tensors that are copied: buffers, and parameters of teachers."""
    followers = parts_of_teachers(learner)
    parameters = [*learner.parameters()]
    copied = [local_shard(p.detach()) for p in parameters if id(p) in followers] + [*learner.buffers()]
    return [p for p in parameters if id(p) not in followers], copied
