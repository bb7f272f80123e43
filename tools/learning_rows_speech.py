"""Settings of the runs of `learning.py` on spoken digits: the objectives of `configs/audio`, smaller encoders, windows of 0.49 s.

Longer windows would be half silence, which is found and predicted without learning: the mean recording has 0.44 s.
"""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, HEAD, control, row

SOUND = {
    "kind": "audio_transformer", "seconds": 0.49, "width": 64, "depth": 3, "heads": 2, "pool": "mean", "class_token": False,
    "front_end": {"kind": "mel", "rate": 8000, "window": 256, "hop": 80, "mels": 64, "mean": -7.5, "std": 4.7},
}  # fmt: skip
PATCHES = {**SOUND, "patch_size": [16, 10]}
FRAMES = {**SOUND, "patch_size": [64, 2]}
"""Tokens over time alone: 25 of 20 ms."""
CHANGED = {
    "kind": "random_window", "gain_db": [-6.0, 6.0], "noise_snr_db": [10.0, 30.0], "noise": 0.5, "shift": 0.1,
    "shift_fill": "silence",
}  # fmt: skip
NOISE = {"kind": "random_window", "noise_snr_db": [-100.0, -100.0]}
"""Noise that is so loud that all samples are clipped: nothing of the sound is left, not even how loud it was."""
SPANS = {"kind": "spans", "tokens": 25, "ratio": 0.65, "length": 5}
TWO = {"modality": "audio", "view": "augmented"}
MASKED = {"modality": "audio", "view": "crop", "mask": "mask"}
USUAL = {"data": "speech", "batch": 64, "steps": 300, "optimizer": {**ADAMW, "lr": 1e-3}}
HIDDEN = {**USUAL, "views": {"crop": {"kind": "random_window"}, "mask": SPANS}}


ROWS: dict[str, dict[str, Any]] = {
    "simclr, sounds": row(
        {"kind": "simclr", **TWO, "temperature": 0.2, "embedding": 64, "head": HEAD},
        PATCHES,
        **USUAL,
        views={"augmented": CHANGED},
    ),
    # Both windows are of the whole recording, mostly, so they are changed too.
    "simclr, COLA": row(
        {"kind": "simclr", **TWO, "similarity": "bilinear", "temperature": 1.0, "embedding": 64, "head": None},
        PATCHES,
        **USUAL,
        views={"augmented": CHANGED},
        bars=("accuracy > 0.2", "loss < 0.9 * chance_loss"),
    ),
    "dino, sounds": row(
        {
            "kind": "dino", **TWO, "momentum": {"kind": "cosine", "start": 0.98, "final": 1.0}, "temperature": 0.1,
            "teacher_temperature": 0.04, "targets": {"kind": "centring", "momentum": 0.9}, "prototypes": 1024, "embedding": 64,
            "head": {"kind": "mlp", "layers": 3, "hidden": 256, "norm": "none", "activation": "gelu"},
        },
        PATCHES,
        **USUAL,
        views={"augmented": CHANGED},
    ),
    "byol, sounds": row(
        {
            "kind": "byol", **TWO, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0}, "embedding": 128, "head": HEAD,
            "predictor": HEAD,
        },
        PATCHES,
        **USUAL,
        views={"augmented": CHANGED},
    ),
    # Both views are windows of the whole recording, mostly: they differ by other recordings mixed in, and by crops.
    "byol, BYOL-A": row(
        {
            "kind": "byol", **TWO, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0}, "embedding": 128, "head": HEAD,
            "predictor": HEAD,
        },
        PATCHES,
        **USUAL,
        views={"augmented": {"kind": "byol_a"}},
    ),
    # Chance: one of all parts of the batch, 1 / 448.
    "cpc, sounds": row(
        {
            "kind": "cpc", "modality": "audio", "view": "crop", "axis": 1, "parts": 7, "steps": 3, "context": 128,
            "embedding": 64,
        },
        {**SOUND, "seconds": 0.07, "patch_size": [16, 8]},
        **USUAL,
        views={"crop": {"kind": "random_window"}},
        bars=("accuracy > 0.02", "loss < 0.9 * chance_loss"),
    ),
    # Chance: one of about 12 hidden tokens of a sound, 0.08; collapsed codes have a perplexity of 2.
    "wav2vec2, sounds": row(
        {
            "kind": "wav2vec2", **MASKED, "groups": 2, "codes": 32, "embedding": 64, "temperature": 0.1,
            "gumbel_temperature": {"kind": "exponential", "start": 2.0, "final": 0.5, "over": "70 percent"},
            "diversity": 0.1,
        },
        FRAMES,
        **HIDDEN,
        bars=("accuracy > 0.4", "code_perplexity > 4"),
    ),
    "masked_prediction, HuBERT": row(
        {
            "kind": "masked_prediction", **MASKED, "mean": "tokens",
            "targets": {
                "kind": "codes", "rows": {"kind": "mfcc"}, "quantizer": {"kind": "kmeans", "codes": 50, "rows": 20_000},
            },
            "predictor": {"kind": "cosine", "embedding": 64, "temperature": 0.1},
        },
        FRAMES,
        **HIDDEN,
        bars=("accuracy > 1.5 * majority", "loss < 0.9 * chance_loss"),
    ),
    # M2D: the teacher sees the hidden patches alone.
    "jepa, M2D": row(
        {
            "kind": "jepa", "modality": "audio", "view": "crop", "masks": ["mask"], "beta": None, "teacher_sees": "block",
            "predictor": {"width": 48, "depth": 2, "heads": 2}, "momentum": {"kind": "linear", "start": 0.99, "final": 1.0},
            "evaluate": "student",
        },
        PATCHES,
        **{**USUAL, "steps": 1500},
        views={
            "crop": {"kind": "random_window"}, "mask": {"kind": "inverse_blocks", "grid": [4, 5], "side": 1, "ratio": 0.6},
        },
        bars=("target_std > 0.1",),
    ),
    # EAT: eight masks of squares of two patches a side share one pass of the teacher.
    "jepa, EAT": row(
        {
            "kind": "jepa", "modality": "audio", "view": "crop", "masks": ["mask"], "draws": 8, "beta": None,
            "predictor": {"kind": "conv", "width": 64, "depth": 3, "groups": 4},
            "targets": {
                "kind": "layers", "layers": 3, "norm": "instance", "norm_mean": True, "over_features": "sqrt", "pooled": 1.0,
            },
            "momentum": {"kind": "linear", "start": 0.99, "final": 1.0}, "evaluate": "student",
        },
        PATCHES,
        **USUAL,
        views={
            "crop": {"kind": "random_window"}, "mask": {"kind": "inverse_blocks", "grid": [4, 5], "side": 2, "ratio": 0.7},
        },
        bars=("target_std > 0.1",),
    ),
    # AudioMAE.
    "mae, sounds": row(
        {
            "kind": "mae", "modality": "audio", "view": "crop", "patch_values": 160, "mask_ratio": 0.75,
            "decoder": {"width": 48, "depth": 2, "heads": 2},
        },
        PATCHES,
        **USUAL,
        views={"crop": {"kind": "random_window"}, "order": {"kind": "order", "tokens": 20}},
        bars=("loss < 0.8 * zero_loss",),
    ),
    # BEATs: codes of a random projection of patches, which the encoder does not see.
    "masked_prediction, BEATs": row(
        {
            "kind": "masked_prediction", **MASKED,
            "targets": {
                "kind": "codes", "rows": {"kind": "patches", "values": 160, "normalise": False},
                "quantizer": {"kind": "random_projection", "codes": 256, "embedding": 32},
            },
            "places": {"kind": "transformer", "width": 48, "depth": 2, "heads": 2}, "predictor": {"kind": "linear"},
        },
        PATCHES,
        **USUAL,
        views={"crop": {"kind": "random_window"}, "mask": {"kind": "spans", "tokens": 20, "ratio": 0.6, "length": 1}},
        bars=("accuracy > 1.5 * majority", "loss < 0.9 * chance_loss"),
    ),
    "latent_prediction, sounds": row(
        {
            "kind": "latent_prediction", **MASKED, "layers": 3, "norm": "instance", "norm_mean": False, "beta": None,
            "over_features": "sqrt", "momentum": 0.99,
        },
        FRAMES,
        **HIDDEN,
        bars=("target_std > 0.1",),
    ),
}  # fmt: skip
ROWS |= {
    "cpc, control": control(
        ROWS["cpc, sounds"], ("accuracy < 0.005", "loss > 0.97 * chance_loss"), views={"crop": NOISE}
    ),
    "wav2vec2, control": control(
        ROWS["wav2vec2, sounds"], ("accuracy < 0.2", "code_perplexity < 4"), views={"crop": NOISE, "mask": SPANS}
    ),
    "masked_prediction, HuBERT, control": control(
        ROWS["masked_prediction, HuBERT"],
        ("accuracy < 1.5 * majority", "loss > 0.9 * chance_loss"),
        views={"crop": NOISE, "mask": SPANS},
    ),
}
"""Objective -> settings of its run."""
