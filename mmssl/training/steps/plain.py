"""One optimizer step: forward, backward, and an update that only finite numbers reach."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.compat import BatchNorm, NormBase, copy_each
from mmssl.core.config import Config
from mmssl.core.distributed import rank, total_detached, world_size
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Latents, Learner, LossOutput, Reduction
from mmssl.core.seeding import seed_step
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.sharding import limit, norm
from mmssl.training.steps.optim import parts
from mmssl.training.steps.state import TrainState


@dataclass(frozen=True)
class StepReport:
    """What a step says. Scalars stay on the device until somebody asks.

    Attributes:
        finite: whether loss and gradients were finite on all processes, and the weights moved.
        votes: for each vote that was handed in, whether some process voted yes.
        output: detached terms and metrics of this process.
        norms: gradient norms before clipping, of each part and ("grad_norm") of all; equal on all processes.
        discarded: whether some process had no batch of this step, so that nothing has moved anywhere.
    """

    finite: bool
    votes: tuple[bool, ...]
    output: LossOutput
    norms: Mapping[str, Tensor]
    discarded: bool = False

    def scalars(self) -> dict[str, float]:
        """Loss, terms, metrics and norms, averaged over processes. Every process must ask; reads the device once."""
        terms = {f"loss/{name}": term for name, term in self.output.terms.items()} if len(self.output.terms) > 1 else {}
        named = {"loss": self.output.total, **terms, **self.output.metrics, **self.norms}
        values = total_detached(torch.stack([value.detach().float().reshape(()) for value in named.values()]))
        return dict(zip(named, (values / world_size()).tolist(), strict=True))


class GradientStep(ABC):
    """The sequence that is common to all ways of computing a gradient.

    A batch whose loss or gradient is not finite on any process moves nothing: no update, and running statistics of
    normalisation layers go back to what they were. It still counts as a step, so that step, schedule and stream stay in
    lockstep and a run remains a function of its recipe; in fp16 the scaler then lowers its scale.

    Args:
        learner: as it is, to look into.
        wrapped: the learner as prepared for data parallelism, to call.
        launch: device, precision and scaler.
        seed: of the run; each step draws its own random numbers from (seed, step, rank).
        clip_norm: largest norm of the gradient of all parameters; None: as it comes.
    """

    def __init__(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None = None
    ) -> None:
        self.wrapped, self.launch, self.seed, self.clip_norm = wrapped, launch, seed, clip_norm
        self._parts = {part: [parameter for _, parameter in named] for part, named in parts(learner).items()}
        self._statistics = _RunningStatistics(learner)

    @abstractmethod
    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """Forward and backward: gradients (scaled in fp16) land in the parameters; loss and latents come detached."""

    def __call__(
        self, state: TrainState, batch: Batch, votes: Sequence[bool] = (), *, discard: bool = False
    ) -> StepReport:
        """One step on this process' share of the global batch.

        Args:
            state: whose learner and optimizer move.
            batch: on the device.
            votes: yes-or-no questions to all processes, answered in the report: they travel with the finite check, for which
                the host waits for the device anyway.
        """
        objective, ctx, scaler = (
            state.learner.objective,
            state.learner.context(state.step, state.total_steps),
            self.launch.scaler,
        )
        seed_step(self.seed, state.step, rank())
        self._statistics.save()
        output, latents = self.gradients(batch, state.step, state.total_steps)
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
                limit(gradients, self.clip_norm, norms["grad_norm"])
            state.optimizer.step()
            with torch.no_grad():
                objective.after_update({name: _as_in_criterion(latent) for name, latent in latents.items()}, ctx)
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
        norms = {f"grad_norm/{part}": norm(tensors) for part, tensors in gradients.items() if tensors}
        return {"grad_norm": torch.stack([*norms.values()]).norm(), **norms}


class PlainStep(GradientStep):
    """Forward and backward on the whole batch at once."""

    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """See the base."""
        with self.launch.autocast():
            output, latents = self.wrapped(batch, step, total_steps)
        self._backward(output.total)
        return detached(output), {name: latent.detach() for name, latent in latents.items()}


class AccumulatedStep(GradientStep):
    """Forward and backward on consecutive parts of the batch, whose gradients add up to those of the whole.

    Right only for losses that are means over samples, and encoders that see each sample alone: others would see the negatives
    or statistics of a part.

    Args:
        micro_batches: how many parts.
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
        # First, because the remedy for coupled objectives, cached gradients, is none for layers.
        refuse_batch_statistics(learner, f"accumulation over {micro_batches} micro-batches")
        reduction = learner.objective.reduction
        if reduction is not Reduction.LOCAL:
            coupled = "negatives" if reduction is Reduction.GATHER else "batch statistics"
            raise RecipeError(
                f"step: accumulation over {micro_batches} micro-batches would be wrong for {type(learner.objective).__name__}: "
                f"its {coupled} would be those of one micro-batch, not of the batch; use step kind 'cached' with as many "
                "micro_batches, which is exact for every objective, or 'plain' with gradient checkpointing in the encoders"
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
        )
        return whole, {name: torch.cat(pieces) for name, pieces in latents.items()}


class PlainStepConfig(Config):
    """The whole batch at once."""

    kind: Literal["plain"] = "plain"

    def build(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None
    ) -> GradientStep:
        """The step."""
        return PlainStep(learner, wrapped, launch, seed, clip_norm)


class AccumulatedStepConfig(Config):
    """The batch of each process in `micro_batches` parts, one after the other: less memory, the same gradient.

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
    """Refuse layers whose numbers depend on which samples they see together, or that move with each pass.

    Args:
        learner: as it will be trained.
        how: what would be wrong with them, e.g. "cached gradients".

    Raises:
        RecipeError: names the first of them.
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
            f"step: {how} would be wrong with {type(layer).__name__} {name!r}{more}: in training it normalises by the "
            "statistics of what it sees, which is one micro-batch and not the batch, and its running statistics would move with "
            "each of them; freeze that encoder, take one without batch normalisation, such as a vision transformer, or use step "
            "kind 'plain'"
        )


def detached(output: LossOutput) -> LossOutput:
    """Terms without graph; metrics as they are."""
    return LossOutput({name: term.detach() for name, term in output.terms.items()}, output.measure)


def _mean(shares: Sequence[float], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The scalars of a batch from those of its parts."""
    return {
        name: torch.stack([part[name] * share for share, part in zip(shares, parts, strict=True)]).sum()
        for name in parts[0]
    }


def _as_in_criterion(latent: Tensor) -> Tensor:
    """Float32, whatever autocast made of it: queues and centres are filled with what the loss has seen."""
    return latent.float() if latent.dtype in (torch.bfloat16, torch.float16) else latent
