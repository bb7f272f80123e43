"""The report of one step, whose values stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.core.distributed import total_detached, world_size
from mmssl.core.objective import LossOutput


class Flags:
    """Yes-or-no values on their way from the device to the host: copied at once, and waited for when they are read."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # from CUDA into pinned memory
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    @property
    def arrived(self) -> bool:
        """Whether the device has done all that it was given before, so that reading waits for nothing."""
        return self._copied is None or self._copied.query()

    def read(self) -> tuple[bool, ...]:
        """The values; waits until the device has made them."""
        if self._copied is not None:
            self._copied.synchronize()
        return tuple(value > 0 for value in self._values.tolist())


@dataclass(frozen=True)
class StepReport:
    """The report of one step: finite or not, loss, metrics, gradient norms. All stays on the device until read.

    Reading `finite`, `discarded` or `votes` waits until the device has done the step.

    Attributes:
        output: detached terms and metrics of this process.
        norms: gradient norms before clipping, of each part and ("grad_norm") of all; equal on all processes.
        flags: not finite, discarded, and the votes; of all processes.
        skip: [] bool on the device, whether the step updated nothing.
    """

    output: LossOutput
    norms: Mapping[str, Tensor]
    flags: Flags
    skip: Tensor

    @property
    def finite(self) -> bool:
        """Whether loss and gradients were finite on all processes, so the weights were updated."""
        return not self.flags.read()[0]

    @property
    def discarded(self) -> bool:
        """Whether some process had no batch for this step or one before, so no process updated anything."""
        return self.flags.read()[1]

    @property
    def votes(self) -> tuple[bool, ...]:
        """For each vote, whether any process voted yes."""
        return self.flags.read()[2:]

    def scalars(self) -> dict[str, float]:
        """Loss, terms, metrics and norms, averaged over processes. Every process must call; synchronises the device once.

        Metrics may lie on the host: numbers that no batch changes, such as the loss of a guess.
        """
        terms = {f"loss/{name}": term for name, term in self.output.terms.items()} if len(self.output.terms) > 1 else {}
        named = {"loss": self.output.total, **terms, **self.output.metrics, **self.norms}
        scalars = [value.detach().to(self.skip.device, torch.float32).reshape(()) for value in named.values()]
        values = total_detached(torch.stack(scalars))
        return dict(zip(named, (values / world_size()).tolist(), strict=True))
