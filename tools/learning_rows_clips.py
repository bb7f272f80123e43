"""Settings of the runs of `learning.py` on clips of moving digits (`mmssl.datasets.moving_scenes`).

kNN and the probe tell how a digit moves: not, on the left or on the right, or to either side. So no view is mirrored.
"""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, HEAD, row

TUBELETS = {
    "kind": "space_time",
    "size": 32,
    "frames": 8,
    "patch_size": 8,
    "tubelet": 2,
    "width": 64,
    "depth": 3,
    "heads": 2,
}
JOINT = {**TUBELETS, "attention": "joint"}
CLIP = {"kind": "clip", "scale": [0.6, 1.0]}
PLACES = {"kind": "jepa", "patch_size": 8, "tubelet": 2, "aspect": [0.75, 1.5], "context_scale": [1.0, 1.0]}
USUAL = {"data": "clips", "batch": 64, "steps": 400, "optimizer": {**ADAMW, "lr": 1e-3}}

ROWS: dict[str, dict[str, Any]] = {
    # CVRL: two clips of a video, at times of its law of gaps.
    "simclr, clips": row(
        {"kind": "simclr", "modality": "video", "view": "clip", "temperature": 0.1, "embedding": 64, "head": HEAD},
        TUBELETS,
        **USUAL,
        views={"clip": {**CLIP, "jitter": 0.8}},
        bars=("accuracy > 0.2",),
    ),
    # VideoMAE: tubes.
    "mae, clips": row(
        {
            "kind": "mae", "modality": "video", "view": "clip", "patch_values": 384, "mask_ratio": 0.75,
            "decoder": {"width": 48, "depth": 2, "heads": 2},
        },
        JOINT,
        **USUAL,
        views={"clip": CLIP, "order": {"kind": "order", "patch_size": 8, "tubelet": 2, "tubes": True}},
        bars=("loss < 0.9 * zero_loss",),
    ),
    # V-JEPA.
    "jepa, clips": row(
        {
            "kind": "jepa", "modality": "video", "view": "clip", "masks": ["short", "long"], "beta": 0.0,
            "predictor": {"width": 48, "depth": 2, "heads": 2}, "momentum": {"kind": "linear", "start": 0.99, "final": 1.0},
        },
        JOINT,
        **USUAL,
        views={
            "clip": CLIP, "short": {**PLACES, "targets": 4, "scale": [0.15, 0.15], "context": 0.15},
            "long": {**PLACES, "targets": 2, "scale": [0.5, 0.5], "context": 0.1},
        },
        bars=("target_std > 0.1",),
    ),
    # Four pieces of two frames; an order and its reverse are one, so that there are twelve.
    "pretext, order": row(
        {
            "kind": "pretext", "modality": "video", "view": "clip", "predictor": {"kind": "bert"},
            "task": {"kind": "order", "axis": 0, "pieces": 4, "channels": "one"},
        },
        TUBELETS,
        **{**USUAL, "steps": 1200},
        views={"clip": CLIP, "choice": {"kind": "choice", "choices": 12}},
        bars=("accuracy > 0.2",),
    ),
    "pretext, speed": row(
        {
            "kind": "pretext", "modality": "video", "view": "clip", "task": {"kind": "speed", "axis": 0, "speeds": [1, 2]},
            "predictor": {"kind": "bert"},
        },
        {**TUBELETS, "frames": 4},
        **USUAL,
        views={"clip": CLIP, "choice": {"kind": "choice", "choices": 2}},
        bars=("accuracy > 0.7",),
    ),
}  # fmt: skip
"""Objective -> settings of its run."""
