"""Figures of a report for the trackers of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def log_picture(tracker: Any, file: Path, step: int) -> None:
    """Give one of Accelerate's trackers a picture of a file, under the file's name; those without pictures get nothing."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    if tracker.name == "mlflow":
        tracker.log_artifact(str(file), "figures")
    elif tracker.name == "trackio":
        import trackio

        tracker.log({f"figures/{file.stem}": trackio.Image(pixels)}, step=step)
    elif hasattr(tracker, "log_images"):
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({f"figures/{file.stem}": pixels[None]}, step=step, **layout)
