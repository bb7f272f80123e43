"""One optimizer step: forward, backward, clipping, and an update only if loss and gradients are finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.compat import BatchNorm, NormBase, copy_each
from mmssl.core.config import Config
from mmssl.core.distributed import rank, total_detached, world_size
from mmssl.core.errors import RecipeError
from mmssl.core.monitors import monitor
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, Reduction
from mmssl.core.torch_seeding import seed_step
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.sharding import clip_gradients, gradient_norm
from mmssl.training.steps.groups import trainable_parts
from mmssl.training.steps.state import TrainState


@dataclass(frozen=True)
class StepReport:
    """The report of one step: finite or not, loss, metrics, gradient norms. Scalars stay on the device until read.

    Attributes:
        finite: whether loss and gradients were finite on all processes, so the weights were updated.
        votes: for each vote, whether any process voted yes.
        output: detached terms and metrics of this process.
        norms: gradient norms before clipping, of each part and ("grad_norm") of all; equal on all processes.
        discarded: whether some process had no batch for this step, so no process updated anything.
    """

    finite: bool
    votes: tuple[bool, ...]
    output: LossOutput
    norms: Mapping[str, Tensor]
    discarded: bool = False

    def scalars(self) -> dict[str, float]:
        """Loss, terms, metrics and norms, averaged over processes. Every process must call; synchronises the device once."""
        terms = {f"loss/{name}": term for name, term in self.output.terms.items()} if len(self.output.terms) > 1 else {}
        named = {"loss": self.output.total, **terms, **self.output.metrics, **self.norms}
        values = total_detached(torch.stack([value.detach().float().reshape(()) for value in named.values()]))
        return dict(zip(named, (values / world_size()).tolist(), strict=True))


class GradientStep(ABC):
    """Base of gradient steps: gradients, finite check, clipping, optimizer, EMA; subclasses compute the gradients.

    A batch with a non-finite loss or gradient on any process updates nothing, and running statistics of normalisation layers are
    restored. It still counts as a step, so that step, schedule and stream stay aligned; in fp16 the scaler lowers its scale.

    Args:
        learner: the unwrapped module.
        wrapped: the learner wrapped for data parallelism, to call.
        launch: device, precision and scaler.
        seed: of the run; each step draws its own random numbers from (seed, step, rank).
        clip_norm: largest norm of the gradient of all parameters; None: no clipping.
    """

    def __init__(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None = None
    ) -> None:
        self.wrapped, self.launch, self.seed, self.clip_norm = wrapped, launch, seed, clip_norm
        self._parts = {part: [parameter for _, parameter in named] for part, named in trainable_parts(learner).items()}
        self._statistics = _RunningStatistics(learner)

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
            votes: yes-or-no values of this process, combined over all in the report; sent with the finite check, which synchronises
                the device anyway.
        """
        objective, ctx, scaler = (
            state.learner.objective,
            state.learner.context(state.step, state.total_steps),
            self.launch.scaler,
        )
        seed_step(self.seed, state.step, rank())
        self._statistics.save()
        output, latents = self.gradients(batch, state.step, state.total_steps)
        output = _monitored(output, latents, objective)
        self.launch.finish(state.learner)
        if scaler is not None:
            scaler.unscale_(state.optimizer)
        objective.before_update(ctx)
        norms = self._norms()
        bad = ~(torch.isfinite(output.total) & torch.isfinite(norms["grad_norm"]))
        mine = torch.tensor([float(vote) for vote in (discard, *votes)], device=self.launch.device)
        answers = [answer > 0 for answer in total_detached(torch.cat([bad.float()[None], mine])).tolist()]
        not_finite, discarded, *votes = answers
        if not_finite or discarded:
            self._statistics.restore()
        else:
            if self.clip_norm is not None:
                gradients = [p.grad for p in self._trainable() if p.grad is not None]
                clip_gradients(gradients, self.clip_norm, norms["grad_norm"])
            state.optimizer.step()
            with torch.no_grad():
                latents = {name: _as_in_criterion(x) for name, x in (latents | output.kept).items()}
                state.learner.after_update(latents, ctx)
        if scaler is not None and not discarded:
            scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        return StepReport(not not_finite, tuple(votes), output, norms, discarded)

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


class _RunningStatistics:
    """Running statistics of the learner's normalisation layers, which a forward pass changes in place."""

    def __init__(self, learner: Learner) -> None:
        layers = [module for module in learner.modules() if isinstance(module, NormBase)]
        self._live = [buffer for layer in layers for buffer in layer.buffers()]
        self._saved = [buffer.clone() for buffer in self._live]

    @torch.no_grad()
    def save(self) -> None:
        copy_each(self._saved, self._live)

    @torch.no_grad()
    def restore(self) -> None:
        copy_each(self._live, self._saved)


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
