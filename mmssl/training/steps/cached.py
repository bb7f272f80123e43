"""Cached gradients (GradCache): exact gradients of a large batch in the memory of a micro-batch.

Gao et al. 2021 (arXiv:2101.06983, GradCache). The loss L depends on the encoders through the latents z alone, so that its gradient
is a sum over micro-batches m of vector-Jacobian products (dL/dz_m) (dz_m/dw), each of which needs the graph of one micro-batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.config import Config
from mmssl.core.distributed import rank
from mmssl.core.encoder import Encoder, Features
from mmssl.core.objective import Latents, Learner, LossOutput
from mmssl.core.teacher import teachers_in
from mmssl.core.torch_seeding import seed_step
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.plain import GradientStep, detached, refuse_batch_statistics


class CachedStep(GradientStep):
    """Gradient step that encodes micro-batches without graph, takes one loss of all latents, then encodes each again for backward.

    The loss sees the whole batch, and every process' batch, as in a plain step: any objective is exact. Each micro-batch has a
    separate random stream, equal in both passes. Pooled features of frozen encoders are computed once and kept. Under data
    parallelism gradients are averaged once, in the last backward pass, to which the gradients of parameters that the criterion
    owns (temperatures, heads) are handed.

    Args:
        micro_batches: number of micro-batches, or fewer if the batch cannot be cut into that number of equal ones.
        others: see the base.

    Raises:
        RecipeError: a layer would normalise by the statistics of one micro-batch.
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
        refuse_batch_statistics(learner, "cached gradients")
        self.learner, self.micro_batches = learner, micro_batches

    def gradients(self, batch: Batch, step: int, total_steps: int) -> tuple[LossOutput, Latents]:
        """See the base."""
        chunks = list(batch.chunks(-(-len(batch) // self.micro_batches)))
        with self._remembering() as stand_ins:
            latents = self._cache(chunks, step, total_steps)
            output, cotangents, owned = self._differentiate(latents, step, total_steps)
            for stand_in in stand_ins:
                stand_in.recalling = True
            start = 0
            for number, chunk in enumerate(chunks):
                last, stop = number == len(chunks) - 1, start + len(chunk)
                with nullcontext() if last else self.launch.without_averaging(self.wrapped):
                    part = self._encode(chunk, number, step, total_steps)
                    pulled = [(part[name], cotangent[start:stop]) for name, cotangent in cotangents.items()]
                    # Data parallelism waits in its one averaging pass for every parameter, also for those that no encoder has.
                    pulled += owned if last else []
                    torch.autograd.backward([x for x, _ in pulled], [gradient for _, gradient in pulled])
                start = stop
        return output, {name: latent.detach() for name, latent in latents.items()}

    @contextmanager
    def _remembering(self) -> Iterator[list[_Remembered]]:
        """Context in which frozen encoders and teachers cache their pooled features; those in training mode (dropout) do not."""
        frozen = {m: _Remembered(encoder) for m, encoder in self.learner.frozen().items() if not encoder.training}
        teachers = {m: _Remembered(t.network) for m, t in teachers_in(self.learner.teachers).items()}  # type: ignore[arg-type]
        self.learner.stand_ins = {"student": frozen, "teacher": teachers}
        try:
            yield [*frozen.values(), *teachers.values()]
        finally:
            self.learner.stand_ins = {}

    def _cache(self, chunks: Sequence[Batch], step: int, total_steps: int) -> Latents:
        """Latents of the whole batch, [B, ...], as leaves; requires_grad is set as in a plain step."""
        rows = sum(len(chunk) for chunk in chunks)
        latents: Latents = {}
        learned: set[str] = set()
        start = 0
        with self.launch.without_averaging(self.wrapped):
            for number, chunk in enumerate(chunks):
                # The first has a graph for a moment, because only a graph tells which latents have a gradient.
                with torch.set_grad_enabled(number == 0):
                    part = self._encode(chunk, number, step, total_steps)
                learned |= {name for name, x in part.items() if x.requires_grad}
                # Copied into one tensor for all rows, so that joining the parts at the end needs no second copy of them all.
                for name in list(part):
                    piece = part.pop(name).detach()
                    latents.setdefault(name, piece.new_empty((rows, *piece.shape[1:])))[start : start + len(chunk)] = (
                        piece
                    )
                start += len(chunk)
        return {name: x.requires_grad_(name in learned) for name, x in latents.items()}

    def _encode(self, chunk: Batch, number: int, step: int, total_steps: int) -> Latents:
        seed_step(self.seed, step, rank(), number)
        with self.launch.autocast():
            _, latents = self.wrapped(chunk, step, total_steps, encode_only=True)
        return dict(latents)

    def _differentiate(
        self, latents: Latents, step: int, total_steps: int
    ) -> tuple[LossOutput, dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """The loss, its gradients (scaled in fp16) with respect to the latents, and its parameters with their gradients.

        Parameters' `.grad` is not written here: DDP's hooks would take it for the end of the backward pass.
        """
        seed_step(self.seed, step, rank())
        output = self.learner.criterion(latents, self.learner.context(step, total_steps))
        names, parameters = [name for name, x in latents.items() if x.requires_grad], self._trainable()
        gradients = torch.autograd.grad(
            self._scaled(output.total), [*(latents[name] for name in names), *parameters], allow_unused=True
        )
        by_latent = zip(names, gradients[: len(names)], strict=True)
        by_parameter = zip(parameters, gradients[len(names) :], strict=True)
        return (
            detached(output),
            {name: gradient for name, gradient in by_latent if gradient is not None},
            [(parameter, gradient) for parameter, gradient in by_parameter if gradient is not None],
        )


class _Remembered(Encoder):
    """A frozen encoder or teacher that caches pooled features in the first pass and returns them in the second, in call order.

    Calls with `pooled_only` and without `hidden` read [B, D] only, so only that is cached. Other calls, and calls with a gradient,
    run twice.

    Attributes:
        recalling: whether this is the second pass.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.width, self.grid, self.depth = encoder.width, encoder.grid, encoder.depth
        self.capabilities, self.trim, self.token_counts = encoder.capabilities, encoder.trim, encoder.token_counts
        self.recalling = False
        self._pooled: deque[Tensor] = deque()

    def prepare(self, x: Tensor) -> Tensor:
        return self.encoder.prepare(x)

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
        **more: Any,
    ) -> Features:
        kept = pooled_only and not hidden and replace is None and not x.requires_grad
        if kept and self.recalling:
            return Features(self._pooled.popleft())
        features: Features = self.encoder(x, keep=keep, replace=replace, hidden=hidden, pooled_only=pooled_only, **more)
        if kept:
            # A copy: often it is a view of all tokens, which would stay with it.
            self._pooled.append(features.pooled.detach().clone())
        return features

    def layers(self) -> list[list[nn.Parameter]]:
        return self.encoder.layers()


class CachedStepConfig(Config):
    """The batch of each process in `micro_batches` parts, each encoded twice: less memory, the same gradient for any objective.

    Attributes:
        micro_batches: number of parts of each process' batch.
    """

    kind: Literal["cached"] = "cached"
    micro_batches: int = Field(ge=2)

    def build(
        self, learner: Learner, wrapped: nn.Module, launch: Launch, seed: int, clip_norm: float | None
    ) -> GradientStep:
        """The step; refuses batch normalisation that is trained with a `RecipeError`."""
        return CachedStep(learner, wrapped, launch, seed, clip_norm, micro_batches=self.micro_batches)
