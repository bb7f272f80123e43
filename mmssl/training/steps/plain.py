"""One optimizer step: forward, backward, clipping, and an update only if loss and gradients are finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.compat import BatchNorm, NormBase, copy_each, skips_on_device
from mmssl.core.config import Config
from mmssl.core.distributed import local_shard, rank, total_detached
from mmssl.core.errors import RecipeError
from mmssl.core.monitors import monitor
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, Reduction
from mmssl.core.teacher import parts_of_teachers
from mmssl.core.torch_seeding import seed_step
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.sharding import clip_gradients, gradient_norm
from mmssl.training.steps.groups import trainable_parts
from mmssl.training.steps.profile import StepProfiler
from mmssl.training.steps.report import Flags, StepReport
from mmssl.training.steps.state import TrainState


class GradientStep(ABC):
    """Base of gradient steps: gradients, finite check, clipping, optimizer, EMA; subclasses compute the gradients.

    A batch with a non-finite loss or gradient on any process updates nothing; buffers, such as running statistics and queues, are
    restored. It still counts as a step, so that step, schedule and stream stay aligned; in fp16 the scaler lowers its scale.
    The device decides that: the host waits for nothing, except in fp16 and for optimizers that are not fused.

    Args:
        learner: the unwrapped module.
        wrapped: the learner wrapped for data parallelism, to call.
        launch: device, precision and scaler.
        seed: of the run; each step draws its own random numbers from (seed, step, rank).
        clip_norm: largest norm of the gradient of all parameters; None: no clipping.

    Attributes:
        profiler: is told of each step; None: there is none.
    """

    def __init__(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None = None
    ) -> None:
        self.wrapped, self.launch, self.seed, self.clip_norm = wrapped, launch, seed, clip_norm
        self._parts = {part: [parameter for _, parameter in named] for part, named in trainable_parts(learner).items()}
        self._before = _Remembered(learner)
        self._discarded: Tensor | None = None
        self.profiler: StepProfiler | None = None

    @abstractmethod
    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """Forward and backward: write gradients (scaled in fp16) to the parameters; return detached loss and latents."""

    def __call__(
        self, state: TrainState, batch: Batch, votes: Sequence[bool] = (), *, discard: bool = False
    ) -> StepReport:
        """Run one step on this process' share of the global batch.

        Args:
            state: its learner and optimizer are updated.
            batch: on the device.
            votes: yes-or-no values of this process, combined over all in the report.
            discard: whether this process has no batch for this step: then no process updates anything, nor in later steps.
        """
        objective, ctx, scaler = (
            state.learner.objective,
            state.learner.context(state.step, state.total_steps),
            self.launch.scaler,
        )
        seed_step(self.seed, state.step, rank())
        self._before.save()
        output, latents = self.gradients(batch, state.step, state.total_steps)
        output = _monitored(output, latents, objective)
        self.launch.finish(state.learner)
        if scaler is not None:
            scaler.unscale_(state.optimizer)
        objective.before_update(ctx)
        norms = self._norms()
        flags = self._flags(output, norms, (discard, *votes))
        skip = flags[:2].any()
        if self.clip_norm is not None:
            gradients = [p.grad for p in self._trainable() if p.grad is not None]
            clip_gradients(gradients, self.clip_norm, norms["grad_norm"])
        if skips_on_device(state.optimizer, skip) or not skip:
            state.optimizer.step()
        with torch.no_grad():
            latents = {name: _as_in_criterion(x) for name, x in (latents | output.kept).items()}
            state.learner.after_update(latents, ctx, skip)
        self._before.restore(skip)
        state.optimizer.zero_grad(set_to_none=True)
        report = StepReport(output, norms, Flags(flags), skip)
        if scaler is not None and not report.discarded:
            scaler.update()
        if self.profiler is not None:
            self.profiler.step()
        return report

    def _flags(self, output: LossOutput, norms: Mapping[str, Tensor], wishes: Sequence[bool]) -> Tensor:
        """[2 + votes] bool of all processes on the device: not finite, discarded, and the votes. Every process must call."""
        bad = ~(torch.isfinite(output.total) & torch.isfinite(norms["grad_norm"]))
        mine = torch.cat([bad[None], bad.new_zeros(len(wishes))]).float()
        for number, wish in enumerate(wishes, start=1):
            if wish:
                mine[number].fill_(1)  # rare; a copy of all from the host would wait
        flags = total_detached(mine) > 0
        self._discarded = flags[1] if self._discarded is None else flags[1] | self._discarded
        flags[1].copy_(self._discarded)  # the host may know of it a step later
        return flags

    def _backward(self, loss: Tensor) -> None:
        self._scaled(loss).backward()

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.launch.scaler is None else self.launch.scaler.scale(loss)

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameters in self._parts.values() for parameter in parameters]

    def _norms(self) -> dict[str, Tensor]:
        gradients = {part: [p.grad for p in ps if p.grad is not None] for part, ps in self._parts.items()}
        norms = {f"grad_norm/{part}": gradient_norm(tensors) for part, tensors in gradients.items() if tensors}
        return {"grad_norm": torch.stack([*norms.values()]).norm(), **norms}


class PlainStep(GradientStep):
    """Gradient step with one forward and backward pass on the whole batch."""

    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """See the base."""
        with self.launch.autocast():
            output, latents = self.wrapped(batch, step, total_steps)
        self._backward(output.total)
        return detached(output), {name: latent.detach() for name, latent in latents.items()}


class AccumulatedStep(GradientStep):
    """Gradient accumulation: forward and backward on consecutive micro-batches of the batch.

    Correct only for losses that are means over samples and encoders without batch statistics: others would see the negatives or
    statistics of a micro-batch.

    Args:
        micro_batches: number of micro-batches.
        others: see the base.

    Raises:
        RecipeError: the objective or a layer couples samples.
    """

    def __init__(
        self,
        learner: Learner,
        wrapped: nn.Module,
        launch: Launch,
        seed: int,
        clip_norm: float | None = None,
        *,
        micro_batches: int,
    ) -> None:
        super().__init__(learner, wrapped, launch, seed, clip_norm)
        # First, because cached gradients, the remedy for coupled objectives, do not help here.
        refuse_batch_statistics(learner, f"accumulation over {micro_batches} micro-batches")
        objective = learner.objective
        reduction = objective.reduction
        if reduction is not Reduction.LOCAL:
            coupled = "negatives" if reduction is Reduction.GATHER else "batch statistics"
            raise RecipeError(
                f"step: accumulation over {micro_batches} micro-batches is wrong for {type(objective).__name__}: "
                f"its {coupled} would come from one micro-batch, not from the batch; use step kind 'cached' with as many "
                "micro_batches, which is exact for every objective, or 'plain' with gradient checkpointing in the encoders"
            )
        absent = learner.optional & objective.needs().keys()
        if absent:
            raise RecipeError(
                f"step: accumulation over {micro_batches} micro-batches is wrong where samples may lack {sorted(absent)}: the mean "
                "over those present would be one of each micro-batch; use step kind 'cached', which is exact, or 'plain'"
            )
        self.micro_batches = micro_batches

    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """See the base."""
        chunks = list(batch.chunks(-(-len(batch) // self.micro_batches)))
        outputs: list[LossOutput] = []
        shares = [len(chunk) / len(batch) for chunk in chunks]
        latents: dict[str, list[Tensor]] = {}
        for number, (chunk, share) in enumerate(zip(chunks, shares, strict=True), start=1):
            with nullcontext() if number == len(chunks) else self.launch.without_averaging(self.wrapped):
                with self.launch.autocast():
                    output, part = self.wrapped(chunk, step, total_steps)
                self._backward(output.total * share)
            outputs.append(detached(output))
            for name, latent in part.items():
                latents.setdefault(name, []).append(latent.detach())
        whole = LossOutput(
            _mean(shares, [output.terms for output in outputs]),
            lambda: _mean(shares, [output.metrics for output in outputs]),
            {name: torch.cat([output.kept[name] for output in outputs]) for name in outputs[0].kept},
        )
        return whole, {name: torch.cat(pieces) for name, pieces in latents.items()}


class PlainStepConfig(Config):
    """One forward and backward pass on the whole batch."""

    kind: Literal["plain"] = "plain"

    def build(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None
    ) -> GradientStep:
        """The step."""
        return PlainStep(learner, wrapped, launch, seed, clip_norm)


class AccumulatedStepConfig(Config):
    """Gradient accumulation over `micro_batches` parts of each process' batch: less memory, the same gradient.

    Attributes:
        micro_batches: number of parts of each process' batch.
    """

    kind: Literal["accumulated"] = "accumulated"
    micro_batches: int = Field(ge=2)

    def build(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None
    ) -> GradientStep:
        """The step; refuses objectives and batch normalisation that couple samples with a `RecipeError`."""
        return AccumulatedStep(learner, wrapped, launch, seed, clip_norm, micro_batches=self.micro_batches)


class _Remembered:
    """What a step changes beside the weights of encoders: the learner's buffers, and the objective's parameters.

    A forward pass changes running statistics, and `after_update` clamps temperatures, moves centres and fills queues. All are
    copied in each step, constants too: 3 MB for CLIP, 85 MB for DINO, and 1.3 GB for the bank of DeepCluster v2 on ImageNet, which
    take 0.4, 16 and 240 ms of one CPU core.
    """

    def __init__(self, learner: Learner) -> None:
        followers = parts_of_teachers(learner)
        parameters = [p.detach() for p in learner.objective.parameters() if id(p) not in followers]
        self._live = [*map(local_shard, parameters), *learner.buffers()]
        self._saved = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def save(self) -> None:
        copy_each(self._saved, self._live)

    @torch.no_grad()
    def restore(self, where: Tensor) -> None:
        """Restore if `where` [] bool is true."""
        for live, saved in zip(self._live, self._saved, strict=True):
            torch.where(where, saved, live, out=live)


def refuse_batch_statistics(learner: Learner, how: str) -> None:
    """Raise an error for layers with batch statistics in training (BatchNorm).

    Args:
        learner: as it will be trained.
        how: the method that excludes them, e.g. "cached gradients".

    Raises:
        RecipeError: names the first such layer.
    """
    modes = [(module, module.training) for module in learner.modules()]
    learner.train()  # as it will be: frozen encoders stay in evaluation mode
    layers = {
        name: layer
        for name, layer in learner.named_modules()
        if isinstance(layer, NormBase)
        and layer.training
        and (isinstance(layer, BatchNorm) or layer.track_running_stats)
    }
    for module, mode in modes:
        module.training = mode
    if layers:
        name, layer = next(iter(layers.items()))
        more = f" and {len(layers) - 1} more like it" if len(layers) > 1 else ""
        raise RecipeError(
            f"step: {how} cannot be used with {type(layer).__name__} {name!r}{more}: in training it normalises by "
            "statistics of one micro-batch, not of the batch. "
            "Freeze that encoder, use one without batch normalisation, such as a vision transformer, or use step "
            "kind 'plain'"
        )


def detached(output: LossOutput) -> LossOutput:
    """Detach the loss terms; metrics and what is kept are unchanged."""
    return replace(output, terms={name: term.detach() for name, term in output.terms.items()})


def _monitored(output: LossOutput, latents: Latents, objective: Objective) -> LossOutput:
    """Add the monitors of the whole batch's latents to the metrics."""
    return replace(output, measure=lambda: {**output.metrics, **monitor(latents, objective.monitored())})


def _mean(shares: Sequence[float], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The scalars of a batch as the weighted mean of its micro-batches'."""
    return {
        name: torch.stack([part[name] * share for share, part in zip(shares, parts, strict=True)]).sum()
        for name in parts[0]
    }


def _as_in_criterion(latent: Tensor) -> Tensor:
    """Cast latents to float32, as in `criterion`: queues and centres store the values that the loss used."""
    return latent.float() if latent.dtype in (torch.bfloat16, torch.float16) else latent
