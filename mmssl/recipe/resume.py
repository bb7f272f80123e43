"""Which keys of a recipe may change when its run is resumed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from mmssl.core.errors import CheckpointError
from mmssl.recipe.flat import leaves
from mmssl.recipe.recipe import Recipe, saved_recipe
from mmssl.training.checkpoints.read import FOLDER, checkpoints, resolve

# Keys that a resume may change: logging, evaluation, saving, loading speed, learning rate, duration. Other changes would make the
# weights, optimizer state or sample order of the checkpoint mean something different.
CHANGEABLE = (
    "name", "output", "duration", "schedule", "optimizer.lr", "optimizer.weight_decay", "optimizer.encoder_lr",
    "optimizer.vector_lr",
    "precision", "device", "deterministic", "compile", "parallel", "distributed_timeout", "clip_norm", "max_bad_steps",
    "save", "log", "profile",
    "evaluators", "keep",
    "data.shards", "data.workers", "data.prefetch", "data.timeout", "data.start_method", "data.max_failures",
    "data.sources.*.shards", "data.cache", "data.allow_pipe", "data.audit",
)  # fmt: skip


def check_resumable(recipe: Recipe, resume: str) -> None:
    """Raise an error if a recipe gives the state of its checkpoint another meaning.

    Args:
        recipe: of the run to start or resume.
        resume: "auto", "never", or the path of a checkpoint or run folder.

    Raises:
        CheckpointError: lists all forbidden differences.
    """
    if resume == "never" or (resume == "auto" and not checkpoints(recipe.folder / FOLDER)):
        return
    checkpoint = resolve(recipe.folder if resume == "auto" else Path(resume), "last")
    refuse_other_recipe(saved_recipe(checkpoint), recipe, checkpoint)


def refuse_other_recipe(saved: Recipe, wanted: Recipe, checkpoint: Path) -> None:
    """The comparison of `check_resumable`."""
    before, after = leaves(saved.model_dump(mode="json")), leaves(wanted.model_dump(mode="json"))
    different = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    refused = [
        key for key in different if not any(fnmatchcase(key, free) or key.startswith(f"{free}.") for free in CHANGEABLE)
    ]
    if refused:
        lines = [f"  {key}: saved {before.get(key, 'absent')!r}, now {after.get(key, 'absent')!r}" for key in refused]
        raise CheckpointError(
            "\n".join([f"{checkpoint} was made by another recipe and cannot be continued by this one:", *lines])
            + "\nuse the saved recipe.yaml, or start afresh under another name=..."
        )
