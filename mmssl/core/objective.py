"""The objective protocol in two halves, and the one module that is wrapped and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.encoder import Encoder

Latents = dict[str, Tensor]
"""Named tensors that `encode` hands to `criterion`; dimension 0 of every one is the sample, so they can be cut and joined."""


class Reduction(IntEnum):
    """How a loss couples samples; composites take the strongest of their children.

    LOCAL: a mean over samples: plain accumulation and data parallelism are exact.
    GATHER: sees the samples of all processes, e.g. as negatives.
    STATISTIC: sees statistics of the whole global batch.
    """

    LOCAL = 0
    GATHER = 1
    STATISTIC = 2


@dataclass(frozen=True)
class StepContext:
    """Where in the run a step stands, and the encoders, which objectives share and therefore do not own.

    Attributes:
        encoders: modality -> encoder.
        step: 0-based optimizer step.
        total_steps: length of the run in steps.
    """

    encoders: Mapping[str, Encoder]
    step: int = 0
    total_steps: int = 1

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1)."""
        return self.step / max(1, self.total_steps)


@dataclass(frozen=True)
class LossOutput:
    """Scalar loss terms, whose sum is minimised, and scalars to log.

    Every process returns its own share: the mean of the totals over processes is the loss of the global batch.

    Attributes:
        terms: name -> [].
        measure: makes the metrics. It holds no graph, and no parameter, because it is called after the update if at all: most
            steps are not logged.
    """

    terms: Mapping[str, Tensor]
    measure: Callable[[], Mapping[str, Tensor]] = dict

    @property
    def total(self) -> Tensor:
        """The scalar that is differentiated."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()

    @cached_property
    def metrics(self) -> Mapping[str, Tensor]:
        """Detached scalars to log, made when they are first asked for."""
        with torch.no_grad(), torch.autocast(self.total.device.type, enabled=False):
            return self.measure()


@dataclass(frozen=True)
class Headline:
    """The few figures of a step for people to watch while a run trains; all others are only recorded.

    Attributes:
        chance: the loss of guessing, beside which the loss is to be read; None: it is not known.
        figures: what a figure is called -> its value, in the order in which they are shown.
    """

    chance: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What is learned: heads, teachers, queues, centres and temperatures as parameters and persistent buffers, and two functions.

    `encode` works on each sample alone (dimension 0 of all latents is the sample), on this process alone: running it in
    micro-batches and joining the results changes nothing. `criterion` couples samples and processes, in float32 with autocast
    off. From this split follow cached gradients, data parallelism and their tests, for every objective at once.
    """

    reduction: Reduction

    @abstractmethod
    def needs(self) -> Needs:
        """Views that `encode` reads: modality -> kind -> count."""

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities that this objective cannot do without: modality -> capabilities. Checked at build."""
        return {}

    def heads(self) -> Mapping[str, nn.Module]:
        """Heads into the shared space, [B, D] -> [B, E], for evaluators; empty where the objective aligns nothing."""
        return {}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Refuse views that do not fit the encoders: called before a run with one blank sample that has all of `needs`.

        Raises:
            ValueError: says which view, and what it should be.
        """

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """Pair of modalities -> [], what their cosines are multiplied with in the loss, 1 / temperature; empty where none are."""
        return {}

    @abstractmethod
    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Encoders, heads, targets: sample by sample."""

    @abstractmethod
    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """The loss of the global batch, from this process' latents (float32)."""

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """The figures to watch, from the scalars of a step: its terms, as "loss/<term>" where there are several, and metrics."""
        return Headline()

    def before_update(self, ctx: StepContext) -> None:
        """Gradients are final and not yet clipped: cancel or scale some."""

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """The optimizer has stepped: clamp temperatures, move teachers, fill queues. Latents come detached."""

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> None:
        """See the whole data set now and then (clustering)."""


def check_capabilities(objective: Objective, encoders: Mapping[str, Encoder]) -> None:
    """Refuse an objective whose encoders are missing or cannot do what it needs.

    Raises:
        ValueError: says which encoder lacks what.
    """
    for modality in objective.needs():
        if modality not in encoders:
            raise ValueError(f"objective needs an encoder for {modality!r}, and the recipe has {sorted(encoders)}")
    for modality, wanted in objective.requires().items():
        lacking = wanted - encoders[modality].capabilities
        if lacking:
            raise ValueError(
                f"{type(objective).__name__} needs an encoder for {modality!r} with {sorted(wanted)}, and "
                f"{type(encoders[modality]).__name__} has {sorted(encoders[modality].capabilities) or 'none of them'}: "
                f"it lacks {sorted(lacking)}; a vision transformer has them all"
            )


class Learner(nn.Module):
    """Encoders and objective as one module: the thing that is wrapped (DDP, FSDP, compile), optimised and saved.

    Encoders are here and not inside the objective because several objectives may share them (SLIP), and a shared tensor must
    have one name in a checkpoint.

    Attributes:
        adapt: changes a batch as its 0-based step wants it, on the device, before it is encoded; None: batches stay as they are.
        stand_ins: modality -> what objectives see in the place of that encoder for now; not part of the learner's state.
    """

    def __init__(self, encoders: Mapping[str, Encoder], objective: Objective) -> None:
        super().__init__()
        check_capabilities(objective, encoders)
        self.encoders = nn.ModuleDict(dict(encoders))
        self.objective = objective
        self.adapt: Callable[[Batch, int], Batch] | None = None
        self.stand_ins: Mapping[str, Encoder] = {}

    def context(self, step: int = 0, total_steps: int = 1) -> StepContext:
        """The context of one step with this learner's encoders, or what stands in for them."""
        return StepContext({**dict(self.encoders.items()), **self.stand_ins}, step, total_steps)  # type: ignore[arg-type]

    def frozen(self) -> dict[str, Encoder]:
        """The encoders without a trainable parameter, by modality."""
        return {
            modality: encoder
            for modality, encoder in self.encoders.items()
            if isinstance(encoder, Encoder) and not any(parameter.requires_grad for parameter in encoder.parameters())
        }

    def forward(
        self, batch: Batch, step: int = 0, total_steps: int = 1, *, encode_only: bool = False
    ) -> tuple[LossOutput | None, Latents]:
        """Both halves on one batch; with `encode_only` the first alone, and None in place of the loss.

        `criterion` runs in float32, whatever the autocast around. Wrappers for data parallelism see this method only, so all
        that they have to prepare and average has to pass through it.
        """
        ctx = self.context(step, total_steps)
        if self.adapt is not None:
            batch = self.adapt(batch, step)
        latents = self.objective.encode(batch, ctx)
        return None if encode_only else self.criterion(latents, ctx), latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """The second half alone, in float32 with autocast off."""
        device = next(self.parameters()).device.type
        with torch.autocast(device, enabled=False):
            exact = {
                name: x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
                for name, x in latents.items()
            }
            return self.objective.criterion(exact, ctx)

    def train(self, mode: bool = True) -> Learner:
        """As usual, but encoders without a trainable parameter stay in evaluation mode: their statistics must not move."""
        super().train(mode)
        for encoder in self.frozen().values():
            encoder.eval()
        return self
