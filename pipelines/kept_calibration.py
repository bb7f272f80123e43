"""Calibrations that `evaluate` fits, kept with the checkpoint, where `Model.match` finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmssl.core.evaluator import Evaluator
    from mmssl.recipe.model import Model


def missing_calibration(model: Model, evaluator: Evaluator) -> str | None:
    """Why a calibration that was fitted before must be fitted again: the checkpoint lacks it. None: it need not be.

    Raises:
        CheckpointError: the file of the checkpoint's calibrations is damaged.
    """
    from mmssl.evaluation.calibration import CalibrationEvaluator
    from mmssl.recipe.calibrations import FILE, calibration_of, read_calibrations

    if not isinstance(evaluator, CalibrationEvaluator) or model.checkpoint is None:
        return None
    a, b = evaluator.config.pair
    there = calibration_of(read_calibrations(model.checkpoint, model.digest()), (a, b))
    return f"{model.checkpoint / FILE} has no calibration of {a} and {b} for these weights" if there is None else None


def keep_calibration(model: Model, evaluator: Evaluator | None) -> None:
    """Write a calibration into the checkpoint, where `Model.match` finds it, or say that there is none to hold it."""
    from mmssl.evaluation.calibration import CalibrationEvaluator
    from mmssl.recipe.calibrations import write_calibration
    from mmssl.training.runtime.console import say

    if not isinstance(evaluator, CalibrationEvaluator):
        return
    a, b = evaluator.config.pair
    if model.checkpoint is None:
        say(
            f"the calibration of {a} and {b} was not kept: this model has no checkpoint folder, where `match` would find it; "
            "train the recipe, or make a folder of a model of another library (`mmssl import`)"
        )
        return
    if evaluator.calibration is None:  # done before, and kept then
        return
    file = write_calibration(model.checkpoint, model.digest(), (a, b), evaluator.calibration)
    say(f"calibration of {a} and {b} in {file}")
