"""Trackers of metrics (tensorboard, wandb, trackio, mlflow, ...), opened through Accelerate's classes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from mmssl.core.errors import RecipeError, did_you_mean

IDS = "trackers.json"
"""File of a run folder: tracker -> id of the run there, so that a resumed run goes on in it."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed.

    Raises:
        RecipeError: names the tracker and what can be used.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(
                f"trackers: got {name!r}{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}; known: {sorted(LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise RecipeError(
                f"trackers: {name!r} is not installed here: install its package, or remove it from the recipe"
            )


def open_tracker(name: str, folder: Path, step: int, project: str, tags: Sequence[str]) -> GeneralTracker:
    """Open a tracker for a run, or its run of before where `step` is above 0.

    Args:
        name: of the tracker.
        folder: of the run, whose name is that of the run there; file-based trackers write below it.
        step: from which the run goes on; tensorboard drops later entries.
        project: wandb's and trackio's project, mlflow's experiment.
        tags: of the run, where the tracker has tags.
    """
    known = _ids(folder) if step > 0 else {}
    settings: dict[str, Any] = {}
    if name == "tensorboard":
        settings = {"purge_step": step + 1} if step > 0 else {}
    elif name == "wandb":
        known.setdefault(name, uuid.uuid4().hex)
        settings = {"name": folder.name, "id": known[name], "resume": "allow", "tags": [*tags], "dir": str(folder)}
    elif name == "trackio":
        settings = {"name": folder.name, "resume": "allow" if step > 0 else "never", "config": {"tags": [*tags]}}
    elif name == "mlflow":
        settings = {"run_name": folder.name, "run_id": known.get(name), "tags": dict.fromkeys(tags, "")}
    made = LOGGER_TYPE_TO_CLASS[name]
    tracker = made(project, *([folder / name] if made.requires_logging_directory else []), **settings)
    tracker.start()
    if name == "mlflow":
        known[name] = tracker.active_run.info.run_id
    if known:
        (folder / IDS).write_text(json.dumps({**_ids(folder), **known}) + "\n")
    return tracker


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # a run without it is another run there
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
