"""Calibrations of a checkpoint: `calibration.json` in its folder, which holds for the weights that it was fitted on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmssl.core.errors import CheckpointError, os_words
from mmssl.evaluation.calibration import Calibration, from_json, to_json

FILE = "calibration.json"
PairNames = tuple[str, str]


def read_calibrations(checkpoint: Path, digest: str) -> dict[PairNames, Calibration]:
    """Pair of modalities -> calibration; empty: there is none of these weights.

    Args:
        checkpoint: folder.
        digest: of the model, see `Model.digest`; the EMA weights of a checkpoint are others than its plain ones.

    Raises:
        CheckpointError: the file is damaged.
    """
    return {(a, b): from_json(one["curve"]) for a, b, one in _entries(checkpoint) if one["model"] == digest}


def other_models(checkpoint: Path | None, digest: str) -> str:
    """What to add to a message that a calibration is missing, if the file of the checkpoint has some of other models."""
    others = checkpoint is not None and any(one["model"] != digest for _, _, one in _entries(checkpoint))
    return f", and {FILE} has some of other weights or settings, or by an earlier version" if others else ""


def calibration_of(fitted: Mapping[PairNames, Calibration], pair: Collection[str]) -> Calibration | None:
    """The calibration of two modalities, named in any order; None: there is none."""
    return next((one for names, one in fitted.items() if set(names) == set(pair)), None)


def write_calibration(checkpoint: Path, digest: str, pair: PairNames, calibration: Calibration) -> Path:
    """Add a calibration to those of a checkpoint; returns the file.

    Raises:
        CheckpointError: the file is damaged, or cannot be written.
    """
    kept = [[a, b, one] for a, b, one in _entries(checkpoint) if {a, b} != set(pair) or one["model"] != digest]
    entries = [*kept, [*pair, {"model": digest, "curve": to_json(calibration)}]]
    file, temporary = checkpoint / FILE, checkpoint / f".{FILE}.tmp"
    try:
        temporary.write_text(json.dumps(entries, allow_nan=False), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {file}: {os_words(error)}; make the checkpoint's folder writable"
        ) from error
    return file


def _entries(checkpoint: Path) -> list[tuple[str, str, dict[str, Any]]]:
    file = checkpoint / FILE
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        entries = [(str(a), str(b), dict(one)) for a, b, one in found]
        for _, _, one in entries:
            from_json(dict(one["curve"]))
            str(one["model"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file} is damaged ({os_words(error)}): delete it, and run `mmssl evaluate --calibrate` again"
        ) from error
    return entries
