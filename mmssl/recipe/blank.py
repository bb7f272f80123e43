"""Blank samples, on which a recipe is tried before a run begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmssl.core.batch import Batch, view_names
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.data.modality import Modality
from mmssl.training.steps.prefetch import Unfinished, finish_views


def blank_batch(learner: Learner, modalities: Mapping[str, Modality], samples: int) -> Batch:
    """A batch of blank samples: silence, black pictures, empty texts, as the objective of a learner gets them.

    Raises:
        RecipeError: a view that is finished for its encoder does not fit it.
    """

    def blank(name: str, kind: str) -> Tensor:
        return torch.stack([modalities[name].view(kind).blank()] * samples)

    views = {
        name: {view: blank(name, kind) for kind, count in kinds.items() for view in view_names(kind, count)}
        for name, kinds in learner.objective.needs().items()
    }
    made = Batch(views, torch.arange(samples))
    unfinished = unfinished_views(modalities)
    if not any(unfinished[name] for name in views):
        return made
    device = next(learner.parameters()).device
    try:
        return finish_views(made.to(device), unfinished, dict(learner.encoders.items())).to("cpu")
    except ValueError as error:
        raise RecipeError(f"modalities: {error}") from error


def unfinished_views(modalities: Mapping[str, Modality]) -> Unfinished:
    """Modality -> kind -> view that is finished on the device."""
    return {
        name: {kind: view for kind, view in modality.views.items() if view.on_device}
        for name, modality in modalities.items()
    }
