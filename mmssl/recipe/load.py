"""Load a model: from a run or checkpoint folder, from a run that has ended, or as a recipe starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.lora import merge_lora
from mmssl.recipe.imported import advising, describe_model, described_folder, is_source, recipe_of, refuse_description
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe, saved_recipe
from mmssl.recipe.start import start_lines
from mmssl.training.checkpoints.read import load_weights, resolve, step_of
from mmssl.training.checkpoints.tensors import load_exactly
from mmssl.training.run import Run
from mmssl.training.runtime.console import say
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
    arch: str | None = None,
    tokenizer: str | Path | None = None,
) -> Model:
    """Load a trained model: of mmssl, or of another library as `mmssl import` takes them.

    Args:
        path: run folder (its best checkpoint, or the last if there is no best) or checkpoint folder; or a file, a model folder of
            open_clip or transformers, `hf-hub:ORG/NAME`, or open_clip's `MODEL:TAG` (both from the local cache). The weights file
            of a folder that says what model it is means the folder.
        which: "best" or "last", for run folders.
        device: of the model.
        ema: use the EMA weights if the run kept them.
        overrides: changes to how samples are read and what is measured, such as "modalities.text.captions=lines".
        arch: open_clip's name of the model, for files that do not say it.
        tokenizer: folder of the tokenizer of another library's model, where it is not beside the weights.

    Raises:
        CheckpointError: missing, damaged or unreadable checkpoint.
        RecipeError: invalid overrides, or overrides of what was trained.
    """
    if which not in ("best", "last"):
        raise RecipeError(f"which: got {which!r}, wanted 'best' or 'last'")
    overrides = [overrides] if isinstance(overrides, str) else overrides
    for override in overrides:
        if not override.startswith(READING):
            raise RecipeError(f"got {override!r} for a trained model; wanted a key below {' or '.join(READING)}")
    path = described_folder(Path(path), arch)
    if is_source(path):
        described = describe_model(path, arch, None if tokenizer is None else Path(tokenizer))
        with advising():
            return start_of(recipe_of(described, "imported", overrides), device=device)
    refuse_description(path, arch, tokenizer)
    recipe, learner, checkpoint = load_learner(path, which=which, ema=ema, overrides=overrides)
    return _ready(recipe, checkpoint, learner, device)


def load_learner(
    path: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    ema: bool = True,
    overrides: Sequence[str] = (),
) -> tuple[Recipe, Learner, Path]:
    """The recipe of a run or checkpoint folder, its trained learner with adapters merged, and the checkpoint. As `load`."""
    checkpoint = resolve(Path(path), which)
    recipe = saved_recipe(checkpoint, overrides)
    learner = recipe.from_scratch().build_learner(recipe.build_modalities(), Plan.unknown())
    load_exactly(learner, load_weights(checkpoint, use_ema=ema), checkpoint)
    merge_lora(learner)
    return recipe, learner, checkpoint


def start_learner_of(recipe: Recipe) -> Learner:
    """The learner that a recipe starts from, without adapters, which change nothing at the start.

    Raises:
        RecipeError, CheckpointError: see `Recipe.build_learner`.
    """
    plain = recipe.model_copy(update={"lora": {}})
    return plain.build_learner(plain.build_modalities(), Plan.unknown())


def trained(recipe: Recipe, run: Run) -> Model:
    """The model of a finished run, equal to `load(run.folder)`, from the modules in memory: nothing is built again.

    Args:
        recipe: the run's recipe.
        run: finished; the model takes over its modules, frozen and in evaluation mode.

    Raises:
        CheckpointError: the run has no valid checkpoint.
    """
    if run.launch.parallel != "ddp":  # its modules are sharded over processes that may have ended
        return load(run.folder, device=run.launch.device)
    checkpoint, state = resolve(run.folder), run.state
    learner = state.ema.module if state.ema is not None else state.learner
    if step_of(checkpoint) != state.step:
        load_exactly(learner, load_weights(checkpoint), checkpoint)
    uncompile_encoders(learner)
    return _ready(recipe, checkpoint, learner, run.launch.device)


def start_of(recipe: Recipe, *, device: str | torch.device = "cpu") -> Model:
    """The untrained model of a recipe: random initial weights, or the pretrained `weights` that the recipe names.

    Raises:
        RecipeError, CheckpointError: see `Recipe.build_learner`.
    """
    learner = recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    for line in start_lines(learner, recipe.seed):
        say(line)
    return _ready(recipe, None, learner, device)


def _ready(recipe: Recipe, checkpoint: Path | None, learner: Learner, device: str | torch.device) -> Model:
    merge_lora(learner)
    embedding = learner.embedding_model()
    biases = {pair: float(bias.detach()) for pair, bias in learner.objective.logit_biases().items()}
    return Model(recipe, checkpoint, embedding.requires_grad_(False).eval().to(device), biases)
