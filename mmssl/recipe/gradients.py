"""The check that the loss of a recipe sends a gradient to every trainable parameter, before training starts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmssl.core.batch import Batch
from mmssl.core.compat import copy_each, graph_leaves
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.core.torch_seeding import seeded
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.groups import trainable_parts

SAMPLES = 2
"""Samples of the pass, or more if the objective needs more: batch normalisation and negatives need two."""


def check_gradients(learner: Learner, batch: Batch, launch: Launch) -> None:
    """Refuse trainable parameters that the loss does not depend on: they would never learn, and DDP would wait for them.

    One forward pass in training mode, on the run's device and in its precision; the autograd graph of the loss then names the
    parameters, as in DDP's own search, without a backward pass. A gradient that is zero counts as a gradient. Weights, buffers
    and random generators stay the same. Every process must call: the loss may gather.

    Args:
        learner: not yet wrapped or compiled; it is moved to the device.
        batch: samples that have all views of the objective's needs.
        launch: device and precision.

    Raises:
        RecipeError: names the first such parameter of each encoder and of the objective, or what the objective refuses.
    """
    learner.to(launch.device)
    modes = [(module, module.training) for module in learner.modules()]
    buffers = [*learner.buffers()]
    saved = [buffer.clone() for buffer in buffers]
    gpus = [launch.device] if launch.device.type == "cuda" else []
    learner.train()
    try:
        with seeded("gradients"), torch.random.fork_rng(gpus), torch.enable_grad(), launch.autocast():
            output, _ = learner(batch.to(launch.device))
    except ValueError as error:
        raise RecipeError(f"objective: {error}") from error
    finally:
        with torch.no_grad():
            copy_each(buffers, saved)
        for module, mode in modes:
            module.training = mode
    wrong = [*_idle(learner, graph_leaves(output.total))]
    if wrong:
        raise RecipeError("\n  ".join(["every trainable parameter needs a gradient from the loss", *wrong]))


def _idle(learner: Learner, reached: set[int]) -> Iterator[str]:
    """A sentence for each part with parameters that were not reached."""
    for part, parameters in trainable_parts(learner).items():
        idle = [name for name, parameter in parameters if id(parameter) not in reached]
        if not idle:
            continue
        which = idle[0] if len(idle) == 1 else f"{idle[0]} and {len(idle) - 1} more of {len(parameters)} parameters"
        where = part if part == "objective" else f"encoders.{part}"
        remedy = "set requires_grad to False in its code" if part == "objective" else "set frozen: true"
        yield f"{where}: got no gradient for {which}: choose another pool or objective, or {remedy}"
