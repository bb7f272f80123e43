"""Train on smaller pictures for a part of the run: cheaper steps, a different result
(RECLIP, arXiv:2304.06028; CLIPA, arXiv:2305.07017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.config import Config, PositiveDuration
from mmssl.core.encoder import Encoder
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan


class ResolutionStage(Config):
    """Pictures of at most `size` pixels a side until the point `until` of the run.

    Attributes:
        size: pixels of a side during the stage; smaller views, such as local crops, stay as they are.
        until: end of the stage, counted from the start of the run.
    """

    size: int = Field(gt=0)
    until: PositiveDuration


class Resolution:
    """Shrinks the pictures of a batch to the size of the step's stage: a pure function of the step, equal after a resume.

    The loader always makes full-size views; they are shrunk on the device, until the last stage ends. Views that are as small as
    the stage or smaller, such as local crops, stay as they are. Encoders must accept other input sizes, e.g. by resampling their
    position embeddings.

    Args:
        stages: modality -> (size, first step after it) of each stage, in order.
    """

    def __init__(self, stages: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        self.stages = {modality: tuple(each) for modality, each in stages.items()}

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Shrink the batch of a 0-based step."""
        views = dict(batch.views)
        for modality, stages in self.stages.items():
            size = next((size for size, stop in stages if step < stop), None)
            if size is not None and modality in views:
                views[modality] = {name: shrink(x, size) for name, x in views[modality].items()}
        return replace(batch, views=views)


def shrink(x: Tensor, size: int) -> Tensor:
    """Pictures [B, C, H, W] or clips [B, T, C, H, W] to a shorter side of `size`, antialiased.

    Smaller ones, and other tensors, are returned unchanged.
    """
    if x.ndim == 5:
        frames = shrink(x.flatten(0, 1), size)
        return frames.reshape(*x.shape[:2], *frames.shape[1:])
    if x.ndim != 4 or min(x.shape[2:]) <= size:
        return x
    scale = size / min(x.shape[2:])
    sides = [round(side * scale) for side in x.shape[2:]]
    small = F.interpolate(x.float(), size=sides, mode="bicubic", antialias=True, align_corners=False)
    return small if x.is_floating_point() else small.round().clamp(0, 255).to(x.dtype)


def build_resolution(schedule: Mapping[str, Sequence[ResolutionStage]], learner: Learner, plan: Plan) -> Resolution:
    """Build the resolution schedule in steps, and try each size on its encoder, so that errors show before the run.

    Raises:
        RecipeError: unknown encoder; masked tokens; stages out of order; a size that the encoder refuses.
    """
    stages = {}
    masking = {Encoder.MASK_DROP, Encoder.MASK_REPLACE}
    for modality, each in schedule.items():
        where = f"resolution.{modality}"
        if modality not in learner.encoders:
            raise RecipeError(f"{where}: there is no such encoder{did_you_mean(modality, learner.encoders)}")
        if masking & learner.objective.requires().get(modality, frozenset()):
            raise RecipeError(
                f"{where}: the objective masks tokens of this encoder, at full size only: "
                "remove the modality from resolution"
            )
        steps = [plan.steps(stage.until) for stage in each]
        if any(a >= b for a, b in pairwise([0, *steps])):
            raise RecipeError(f"{where}: got stages that end after {steps} steps, wanted increasing ends")
        if steps[-1] > plan.total_steps:
            raise RecipeError(
                f"{where}: got a stage until '{each[-1].until}' ({steps[-1]} steps), and the run has {plan.total_steps} steps "
                "(duration): end the stage earlier; '100 percent' trains on small pictures throughout"
            )
        for stage in each:
            encoder = learner.encoders[modality]
            assert isinstance(encoder, Encoder)
            try:
                _try(encoder, stage.size)
            except (ValueError, RuntimeError) as error:
                raise RecipeError(f"{where}: the encoder does not take {stage.size} pixels: {error}") from error
        stages[modality] = [(stage.size, stop) for stage, stop in zip(each, steps, strict=True)]
    return Resolution(stages)


@torch.no_grad()
def _try(encoder: Encoder, size: int) -> None:
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device), pooled_only=True)
    finally:
        encoder.train(training)
