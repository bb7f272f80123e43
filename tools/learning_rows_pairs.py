"""Settings of the runs of `learning.py` on digits that are written and said (MNIST, Free Spoken Digit Dataset)."""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, SMALL_VIT, row
from learning_rows_speech import PATCHES

ROWS: dict[str, dict[str, Any]] = {
    # CAV-MAE, with a contrast of weight 1 (the paper: 0.01), and half of the tokens hidden: three quarters, as there, leave 5 of
    # the 20 of a sound, and the contrast at chance. What is hidden of a sound is told by the picture, too: a wrong one makes it
    # worse. The contrast of 64 pairs of ten digits can be right about one time in six.
    "joint_mae, digits": row(
        {
            "kind": "joint_mae", "modalities": ["image", "audio"], "views": {"image": "crop", "audio": "window"},
            "orders": {"image": "order", "audio": "order"}, "patch_values": {"image": 48, "audio": 160}, "mask_ratio": 0.5,
            "joint_depth": 1, "joint_heads": 2, "decoder": {"width": 64, "depth": 2, "heads": 2}, "contrast": 1.0,
            "temperature": 0.05,
        },
        PATCHES,
        data="digits",
        beside={
            "image": {
                "encoder": SMALL_VIT,
                "views": {"crop": {"kind": "resized_crop", "scale": [0.6, 1.0]}, "order": {"kind": "order", "patch_size": 4}},
            },
        },
        mismatched="mismatched",
        batch=64,
        steps=900,
        optimizer={**ADAMW, "lr": 1e-3},
        views={"window": {"kind": "random_window"}, "order": {"kind": "order", "tokens": 20}},
        bars=("mismatched/audio > 1.01 * audio", "audio < 0.8 * audio/zero_loss", "audio_to_image_accuracy > 0.08"),
    ),
}  # fmt: skip
"""Objective -> settings of its run."""
