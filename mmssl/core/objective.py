"""The objective protocol in two halves, and the one module that is wrapped and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.capabilities import check_capabilities
from mmssl.core.context import StepContext
from mmssl.core.encoder import EmbeddingModel, Encoder
from mmssl.core.forward import Network
from mmssl.core.start import Start
from mmssl.core.teacher import Momentum, Teacher, teachers_in

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
class LossOutput:
    """Scalar loss terms, whose sum is minimised, and scalars to log.

    Every process returns its own share: the mean of the totals over processes is the loss of the global batch.

    Attributes:
        terms: name -> [].
        measure: computes the metrics on demand, [] on the device or the host: most steps are not logged. Called after the update,
            so it holds neither graph nor parameter.
        kept: name -> detached rows [n, ...] of this process that `after_update` gets beside the latents, e.g. for a queue.
    """

    terms: Mapping[str, Tensor]
    measure: Callable[[], Mapping[str, Tensor]] = dict
    kept: Latents = field(default_factory=dict)

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
    """The few figures of a step that the console shows; the rest goes to the log file only.

    Attributes:
        chance: the loss of random guessing, which is that of collapsed features too; None: unknown, or collapse has the lowest.
        figures: label -> value, in display order.
    """

    chance: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterRule:
    """How the optimizer updates some parameters of an objective, where that differs from the others.

    Attributes:
        constant_rate: the learning rate stays at its peak, whatever the schedule.
        weight_decay: whether weight decay applies, to those that it usually applies to.
        rate: multiplier of the learning rate.
    """

    constant_rate: bool = False
    weight_decay: bool = True
    rate: float = 1.0


class Objective(nn.Module, ABC):
    """A training objective in two functions, with heads, teachers, queues, centres and temperatures as parameters and buffers.

    `encode` works on each sample alone (dimension 0 of all latents is the sample), on this process alone: running it in
    micro-batches and joining the results changes nothing. `criterion` couples samples and processes, in float32 with autocast
    off. From this split follow cached gradients, data parallelism and their tests, for every objective at once.

    Attributes:
        reduction: how the loss couples samples.
        least_samples: fewest samples of a global batch from which there is something to learn. Checked at build.
        accepts_absent: whether samples may lack a modality that it needs: they change nothing for the others. See `Present`.
        start: where its initial tensors come from; None: they are random.
    """

    reduction: Reduction
    least_samples: int = 1
    accepts_absent: bool = False
    start: Start | None = None

    @abstractmethod
    def needs(self) -> Needs:
        """Views that `encode` reads: modality -> kind -> count."""

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities that this objective requires: modality -> capabilities. Checked at build."""
        return {}

    def hidden_layers(self) -> Mapping[Network, Mapping[str, int]]:
        """Most hidden layers that it asks `ctx.features` for: network -> modality -> number. Objectives of a sum share the pass."""
        return {}

    def teachers(self) -> Mapping[str, Momentum]:
        """Encoders that this objective compares with a teacher: modality -> momentum. Objectives of a sum share the teacher."""
        return {}

    def evaluated(self) -> Mapping[str, Network]:
        """Which network of a modality is evaluated, embedded and exported, where it is not the student."""
        return {}

    def heads(self) -> Mapping[str, nn.Module]:
        """Heads into the shared space, [B, D] -> [B, E], for evaluators; empty where the objective aligns nothing."""
        return {}

    def parameter_groups(self) -> Mapping[str, ParameterRule]:
        """Rules for parameters that are updated in another way than the rest: first part of their names, whole words -> rule.

        Of several that fit a name, the longest counts. "predictor" is the module of that name, with all in it.
        """
        return {}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Refuse views that do not fit the encoders: called once before a run, with a blank sample that has all of `needs`.

        Raises:
            ValueError: says which view, and what it should be.
        """

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """Pair of modalities -> logit scale [] of their cosines in the loss (1 / temperature); empty if there is none."""
        return {}

    def logit_biases(self) -> Mapping[tuple[str, str], Tensor]:
        """Pair of modalities -> number [] that the loss adds to their logits; empty if there is none."""
        return {}

    @abstractmethod
    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Compute latents (encoders, heads, targets), each sample independently."""

    @abstractmethod
    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """The loss of the global batch, from this process' latents (float32)."""

    def monitored(self) -> Mapping[str, str]:
        """Latents [B, D] whose spread and norm are logged: name in the log -> name of the latent; rows of zeros are left out."""
        return {}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """The figures to watch, from the scalars of a step: its terms, as "loss/<term>" where there are several, and metrics."""
        return Headline()

    def before_update(self, ctx: StepContext) -> None:
        """Hook: gradients are final and not yet clipped; cancel or scale some here."""

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Hook: the optimizer has stepped; clamp temperatures, move centres, fill queues here.

        Teachers have not moved yet. Latents are detached, and joined by what `criterion` kept (`LossOutput.kept`).
        """

    def refresh_every(self) -> int | None:
        """Steps from one `refresh` to the next, at least 1; the first is before the first step. None: there is none."""
        return None

    def refresh_needs(self) -> Needs:
        """Views of the batches that `refresh` gets; default: view "eval" of the modalities in `needs`."""
        return {modality: {"eval": 1} for modality in self.needs()}

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> Collection[str]:
        """Hook: read all training samples between two steps (clustering), in evaluation mode, float32 and without gradient.

        Change parameters and buffers only when the reading is over, and equally on all processes.

        Args:
            batches: this process' share of the samples, each once, in order; every iteration reads anew. Processes may have
                different numbers of batches: communicate afterwards, by `distributed.gather_uneven` first.
            ctx: of the step that follows. It forgets features when the next batch is read.

        Returns:
            Names of parameters that were made anew: the optimizer forgets their moments.
        """
        return ()


class Learner(nn.Module):
    """Encoders and objective as one nn.Module: wrapped (DDP, FSDP, compile), optimised and saved together.

    Encoders are here and not inside the objective because several objectives may share them (SLIP), and a shared tensor must
    have one name in a checkpoint.

    Attributes:
        teachers: modality -> teacher of that encoder, where the objective asks for one.
        adapt: changes a batch for its 0-based step, on the device, before encoding; None: batches are unchanged.
        stand_ins: network -> modality -> module that temporarily replaces it for objectives; not part of the state dict.

    Args:
        encoders: modality -> encoder.
        objective: built for these encoders.
        optional: modalities that samples may lack.
        seed: of the run, for random numbers that are equal on all processes.

    Raises:
        ValueError: an encoder is missing, lacks what the objective requires, or is frozen and has a teacher.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        objective: Objective,
        *,
        optional: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_capabilities(type(objective).__name__, objective.needs(), objective.requires(), encoders)
        self.encoders = nn.ModuleDict(dict(encoders))
        self.objective = objective
        self.optional, self.seed = frozenset(optional), seed
        self._whole = frozenset(m for m, wanted in objective.requires().items() if Encoder.TOKENS in wanted)
        frozen = self.frozen()
        for modality in objective.teachers():
            if modality in frozen:
                raise ValueError(
                    f"encoders.{modality} is frozen, and the objective asks for its teacher, which would never differ from it: "
                    "set frozen: false, or remove the objective that needs the teacher"
                )
        self.teachers = nn.ModuleDict(
            {modality: Teacher(encoders[modality], momentum) for modality, momentum in objective.teachers().items()}
        )
        self.adapt: Callable[[Batch, int], Batch] | None = None
        self.stand_ins: Mapping[Network, Mapping[str, Encoder]] = {}

    def context(self, step: int = 0, total_steps: int = 1) -> StepContext:
        """The `StepContext` of one step, with this learner's encoders and teachers or their `stand_ins`."""
        encoders = {**dict(self.encoders.items()), **self.stand_ins.get("student", {})}
        teachers = {**dict(self.teachers.items()), **self.stand_ins.get("teacher", {})}
        shared = (self.seed, self.optional, self._whole, self.objective.hidden_layers())
        return StepContext(encoders, step, total_steps, teachers, *shared)  # type: ignore[arg-type]

    def networks(self) -> dict[str, nn.Module]:
        """The network of each modality that is evaluated, embedded and exported: the encoder, or its teacher's network."""
        measured = self.objective.evaluated()
        followers = {name: part.network for name, part in self.teachers.items() if isinstance(part, Teacher)}
        return {
            modality: followers[modality] if measured.get(modality) == "teacher" else encoder
            for modality, encoder in self.encoders.items()
        }

    def embedding_model(self) -> EmbeddingModel:
        """The networks, heads and logit scales, for evaluators: it shares the weights, and has the scales as they are now."""
        scales = {pair: float(scale.detach()) for pair, scale in self.objective.logit_scales().items()}
        return EmbeddingModel(self.networks(), self.objective.heads(), scales)

    def after_update(self, latents: Latents, ctx: StepContext, skip: Tensor | None = None) -> None:
        """After an optimizer step: call the objective's `after_update`, then move every teacher towards its student.

        In this order the objective may still ask a teacher for what the loss saw of it.

        Args:
            latents: detached, with `LossOutput.kept`.
            ctx: of the step.
            skip: [] bool on the device, whether the step is not counted: teachers' parameters then stay; None: it is false.
        """
        self.objective.after_update(latents, ctx)
        for teacher in teachers_in(self).values():
            teacher.follow(ctx.step, skip)

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
        """Run `encode` and `criterion` on one batch; with `encode_only` return latents and None as the loss.

        `criterion` runs in float32, whatever the autocast around. Wrappers for data parallelism see this method only, so every
        parameter that they average must be used through it.
        """
        ctx = self.context(step, total_steps)
        if self.adapt is not None:
            batch = self.adapt(batch, step)
        latents = self.objective.encode(batch, ctx)
        return None if encode_only else self.criterion(latents, ctx), latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Run `criterion` alone, in float32 with autocast off."""
        device = next(self.parameters()).device.type
        with torch.autocast(device, enabled=False):
            exact = {
                name: x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
                for name, x in latents.items()
            }
            return self.objective.criterion(exact, ctx)

    def train(self, mode: bool = True) -> Learner:
        """Set training mode; frozen encoders stay in evaluation mode, so their running statistics do not change."""
        super().train(mode)
        for encoder in self.frozen().values():
            encoder.eval()
        return self
