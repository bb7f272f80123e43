"""Read checkpoints: find the one that a path means, verify it, and load it completely or not at all.

A run folder holds `checkpoints/step_00001000/` with
    model.safetensors   all tensors of the learner
    frozen.safetensors  those that are not trained, if they are most: the same file (hard links) in all checkpoints of the run
    ema.safetensors     their average, if the run keeps one
    optimizer.pt        the optimizer's state: tensors and plain values, read with weights_only
    state.json          counters, position of the stream, versions
    recipe.yaml         the resolved recipe
    manifest.json       sizes and SHA-256 of the above, written last
and beside them LATEST and BEST, files with a folder's name. A checkpoint with a file PINNED in it is never deleted. `write.py`
writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.core.errors import CheckpointError, os_words
from mmssl.training.checkpoints.manifest import MANIFEST, verify
from mmssl.training.checkpoints.tensors import load_exactly, read_tensors
from mmssl.training.runtime.console import say
from mmssl.training.runtime.sharding import shard_moments
from mmssl.training.steps.state import TrainState

FROZEN = "frozen.safetensors"
FOLDER, LATEST, BEST, PINNED = "checkpoints", "LATEST", "BEST", "PINNED"
_NAME = re.compile(r"step_(\d{8,})")


def folder_name(step: int) -> str:
    """The name of the checkpoint of a step; names sort like steps."""
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"got {folder.name!r}, wanted the name of a checkpoint, such as {folder_name(1000)}")
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in a folder, newest first; not verified."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def resolve(path: Path, which: Literal["best", "last"] = "best", *, strict: bool = False) -> Path:
    """The checkpoint that a path means, verified.

    Args:
        path: a checkpoint, a run folder, or its folder of checkpoints.
        which: of several, the best by the watched metric (the last if none is watched) or the last one.
        strict: raise an error if the wanted one is damaged; otherwise fall back to the newest valid one.

    Raises:
        CheckpointError: there is none, or no valid one.
    """
    if (path / MANIFEST).exists() or _NAME.fullmatch(path.name):
        verify(path)
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    existing = checkpoints(folder)
    if not existing:
        raise CheckpointError(
            f"{path}: no checkpoint here: wanted a checkpoint folder, or a run folder with checkpoints"
        )
    best = pointed_checkpoint(folder, BEST) if which == "best" else None
    if best is not None:
        try:
            verify(best)
            return best
        except CheckpointError as error:
            if strict:
                raise
            say(f"skipping the best checkpoint: {error}")
    if strict:
        verify(existing[0])
        return existing[0]
    return newest_valid(existing)


def load(folder: Path, state: TrainState) -> None:
    """Load a verified checkpoint into a state of the same recipe, bit by bit.

    Hyperparameters (rates, decay, betas) stay those of the state: a recipe may change them at a resume.

    Raises:
        CheckpointError: it belongs to another recipe, or cannot be read.
    """
    load_exactly(state.learner, _tensors(folder, "model.safetensors"), folder)
    if state.ema is not None:
        averaged = folder / "ema.safetensors"
        # A run that starts to average now starts from the weights.
        start = "ema.safetensors" if averaged.exists() else "model.safetensors"
        load_exactly(state.ema.module, _tensors(folder, start), folder)
    moments = _fitting(state.optimizer.state_dict(), read_optimizer(folder), folder)
    moments["state"] = shard_moments(moments["state"], state.optimizer)
    state.optimizer.load_state_dict(moments)
    try:
        state.load_numbers(read_numbers(folder))
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'}: lacks {error}: written by another version of this library"
        ) from error


def load_weights(folder: Path, use_ema: bool = True) -> dict[str, Tensor]:
    """The learner's tensors from a checkpoint, verified, on the CPU: the EMA weights if `use_ema` and the run kept them.

    Raises:
        CheckpointError: damaged, or not a checkpoint.
    """
    verify(folder)
    averaged = folder / "ema.safetensors"
    return _tensors(folder, "ema.safetensors" if use_ema and averaged.exists() else "model.safetensors")


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file, and those that are not trained where they stand apart."""
    frozen = folder / FROZEN
    return {**(read_tensors(frozen) if frozen.exists() else {}), **read_tensors(folder / name)}


def read_recipe(folder: Path) -> str:
    """The resolved recipe of a checkpoint, as YAML.

    Raises:
        CheckpointError: it is missing.
    """
    return str(_read(folder / "recipe.yaml", str))


def read_numbers(folder: Path) -> dict[str, Any]:
    """The counters, scores and versions of a checkpoint.

    Raises:
        CheckpointError: they are missing or cannot be read.
    """
    return _read(folder / "state.json", json.loads)  # type: ignore[no-any-return]


def read_optimizer(folder: Path) -> dict[str, Any]:
    """The optimizer's state of a checkpoint, on the CPU. No code in the file is run.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    path = folder / "optimizer.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # unpickling a foreign file may raise anything
        raise CheckpointError(f"{path}: cannot be read: {os_words(error)}") from error


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {os_words(error)}") from error


def _fitting(own: dict[str, Any], saved: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The saved moments with the current hyperparameters, after checking that they belong to the same parameters."""

    def names(state: dict[str, Any]) -> list[Any]:
        return [group.get("param_names") for group in state["param_groups"]]

    if names(own) != names(saved):
        ours, theirs = ({n for group in names(state) for n in group or ()} for state in (own, saved))
        difference = ", ".join(sorted(ours ^ theirs)[:8]) or "the same parameters in other groups"
        raise CheckpointError(
            f"{folder}: the saved optimizer has other parameters than the recipe's: {difference}; resume with the "
            "recipe.yaml of the checkpoint, or start in another run folder"
        )
    return {"state": saved["state"], "param_groups": own["param_groups"]}


def newest_valid(candidates: list[Path]) -> Path:
    """The first valid candidate; logs the damaged ones with their errors.

    Raises:
        CheckpointError: no candidate is valid.
    """
    reasons = []
    for folder in candidates:
        try:
            verify(folder)
        except CheckpointError as error:
            say(f"skipping checkpoint {folder.name}: {error}")
            reasons.append(str(error))
        else:
            return folder
    raise CheckpointError("no valid checkpoint:\n  " + "\n  ".join(reasons))


def pointed_checkpoint(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that LATEST or BEST names, if that file exists."""
    try:
        name = (folder / pointer).read_text().strip()
    except OSError:
        return None
    return folder / name if _NAME.fullmatch(name) else None
