"""Load a model: from a run or checkpoint folder, from a run that has ended, or as a recipe starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from mmssl.core.encoder import EmbeddingModel, EncoderConfig
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe, saved_recipe
from mmssl.training.checkpoints.read import load_weights, resolve, step_of
from mmssl.training.checkpoints.tensors import load_exactly
from mmssl.training.run import Run
from mmssl.training.steps.compilation import uncompile_encoders

# What may be changed of a trained model: how samples are read, and what is measured.
READING = ("modalities.", "evaluators.")


def load(
    path: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: str | torch.device = "cpu",
    ema: bool = True,
    overrides: Sequence[str] = (),
) -> Model:
    """Load a trained model from a run folder or a checkpoint folder.

    Args:
        path: run folder (its best checkpoint, or the last if there is no best) or checkpoint folder.
        which: "best" or "last", for run folders.
        device: where the model goes.
        ema: take the averaged weights if the run kept them.
        overrides: changes to how samples are read and what is measured, such as "modalities.text.captions=lines".

    Raises:
        CheckpointError: missing, damaged or unreadable checkpoint.
        RecipeError: overrides that are mistaken, or of what was trained.
    """
    for override in overrides:
        if not override.startswith(READING):
            raise RecipeError(
                f"got {override!r} for a trained model, which stays as it is: wanted a key below {' or '.join(READING)}"
            )
    checkpoint = resolve(Path(path), which)
    recipe = saved_recipe(checkpoint, overrides)
    from_scratch = {name: _from_scratch(config) for name, config in recipe.encoders.items()}
    learner = recipe.model_copy(update={"encoders": from_scratch, "weights": None}).build_learner(
        recipe.build_modalities()
    )
    load_exactly(learner, load_weights(checkpoint, use_ema=ema), checkpoint)
    return _ready(recipe, checkpoint, learner, device)


def trained(recipe: Recipe, run: Run) -> Model:
    """The model that `load(run.folder)` gives, made of the modules of a run that has ended: nothing is built again.

    Args:
        recipe: of the run.
        run: ended; its modules stop learning and belong to the model from here on.

    Raises:
        CheckpointError: the run has no valid checkpoint.
    """
    if run.launch.parallel != "ddp":  # its modules are split over processes, which need not be there any more
        return load(run.folder, device=run.launch.device)
    checkpoint, state = resolve(run.folder), run.state
    learner = state.ema.module if state.ema is not None else state.learner
    if step_of(checkpoint) != state.step:
        load_exactly(learner, load_weights(checkpoint), checkpoint)
    uncompile_encoders(learner)
    return _ready(recipe, checkpoint, learner, run.launch.device)


def _from_scratch(config: EncoderConfig) -> EncoderConfig:
    """Without weights to start from, which may be gone from where they were; nor do encoders inside have any."""
    inside = {name: _from_scratch(value) for name, value in config if isinstance(value, EncoderConfig)}
    return config.model_copy(update={"weights": None, "place": None, **inside})


def start_of(recipe: Recipe, *, device: str | torch.device = "cpu") -> Model:
    """The model as training would find it: freshly drawn weights, or those that the recipe starts from.

    Raises:
        RecipeError, CheckpointError: see `Recipe.build_learner`.
    """
    return _ready(recipe, None, recipe.build_learner(recipe.build_modalities()), device)


def _ready(recipe: Recipe, checkpoint: Path | None, learner: Learner, device: str | torch.device) -> Model:
    embedding = EmbeddingModel(dict(learner.encoders.items()), learner.objective.heads())
    scales = {pair: float(scale.detach()) for pair, scale in learner.objective.logit_scales().items()}
    return Model(recipe, checkpoint, embedding.requires_grad_(False).eval().to(device), scales)
