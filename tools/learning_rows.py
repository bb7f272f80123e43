"""Settings of the runs of `learning.py` on pictures: one row an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONV = {"kind": "resnet", "size": 32, "layers": [2, 2], "channels": 16, "pool": "mean", "zero_init_residual": False}
VIT = {"kind": "vit", "size": 32, "patch_size": 4, "width": 96, "depth": 4, "heads": 3, "pool": "mean"}
SMALL_VIT = {**VIT, "width": 64, "depth": 3, "heads": 2}
HEAD = {"kind": "mlp", "hidden": 256, "norm": "batch"}
COLOURS = {
    "kind": "simclr", "scale": [0.2, 1.0], "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0,
}  # fmt: skip
GREY = {"kind": "simclr", "scale": [0.5, 1.0], "jitter": 0.0, "grayscale": 0.66, "blur": 0.0}
"""For tiles: colours tell which are neighbours."""
TWO = {"modality": "image", "view": "augmented"}
VIEWS = {"augmented": COLOURS}
SHORT = {"views": {"augmented": {**COLOURS, "hue": 0.0}}, "batch": 64, "steps": 900}
"""For objectives without negatives, which learn by the number of updates: more of them, without the costliest change of colours."""
ADAMW = {"kind": "adamw", "lr": 2e-3, "weight_decay": 0.01}


def row(objective: Mapping[str, Any], encoder: Mapping[str, Any] = CONV, **changes: Any) -> dict[str, Any]:
    """Settings of one row: the objective, its encoder, and what differs from the rest.

    Changes may be `bars`: what must hold of the objective's own figures on test samples, for each seed, as "accuracy > 0.45" or
    "loss < 0.9 * chance_loss"; scores of the evaluators have names, too: "probe/acc1". They were stated before the runs. `train`
    and `labelled` are the folders of the data that are trained on and whose labels kNN and the probe learn. `beside` are encoders
    and views of further modalities, and `mismatched` a folder of test samples whose parts do not belong together: the objective's
    figures of them are "mismatched/loss" and so on.
    """
    usual: dict[str, Any] = {
        "data": "pictures",
        "train": "train",
        "labelled": "train",
        "beside": {},
        "mismatched": None,
    }
    usual |= {"views": VIEWS, "batch": 128, "steps": 400, "optimizer": ADAMW, "bars": ()}
    return {"objective": dict(objective), "encoder": dict(encoder), **usual, **changes}


def control(of: Mapping[str, Any], bars: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """A negative control: a row whose signal a setting destroys, so that it must not show the row's figure."""
    return {**of, "bars": bars, **changes}


ROWS: dict[str, dict[str, Any]] = {
    "simclr": row({"kind": "simclr", **TWO, "temperature": 0.2, "embedding": 64, "head": HEAD}),
    "barlow_twins": row({"kind": "barlow_twins", **TWO, "redundancy_weight": 0.01, "embedding": 256, "head": HEAD}),
    "vicreg": row(
        {"kind": "vicreg", **TWO, "invariance_weight": 25, "variance_weight": 25, "covariance_weight": 1, "embedding": 256,
         "head": HEAD}
    ),
    "simsiam": row(
        {
            "kind": "simsiam", **TWO, "embedding": 256, "head": {**HEAD, "norm_last": True},
            "predictor": {"kind": "mlp", "hidden": 64, "norm": "batch"},
        },
        **SHORT,
    ),
    # The paper's head has no last norm: with it, BYOL learns in this few updates, and hardly without.
    "byol": row(
        {
            "kind": "byol", **TWO, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0}, "embedding": 256,
            "head": {**HEAD, "norm_last": True}, "predictor": HEAD,
        },
        **SHORT,
    ),
    "lejepa": row(
        {"kind": "lejepa", **TWO, "views": 2, "sigreg_weight": 0.05, "directions": 256, "embedding": 32,
         "head": {**HEAD, "norm_last": True}}
    ),
    "moco_v2": row(
        {
            "kind": "moco_v2", **TWO, "temperature": 0.2, "momentum": 0.99, "queue": 4096, "embedding": 64,
            "head": {**HEAD, "norm": "none"}, "symmetric": True,
        }
    ),
    "moco_v3": row(
        {
            "kind": "moco_v3", **TWO, "temperature": 0.2, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0},
            "embedding": 64, "head": {**HEAD, "norm_last": True}, "predictor": HEAD,
        }
    ),
    "nnclr": row(
        {"kind": "nnclr", **TWO, "temperature": 0.2, "queue": 4096, "embedding": 64, "head": HEAD, "predictor": HEAD}
    ),
    "dino": row(
        {
            "kind": "dino", **TWO, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0}, "temperature": 0.1,
            "teacher_temperature": 0.04, "targets": {"kind": "centring", "momentum": 0.9}, "prototypes": 1024, "embedding": 64,
            "head": {**HEAD, "layers": 3},
        }
    ),
    "swav": row(
        {
            "kind": "swav", **TWO, "local_view": "small", "local_views": 2, "temperature": 0.1, "code_temperature": 0.03,
            "prototypes": 64, "embedding": 32, "head": HEAD,
        },
        views={**VIEWS, "small": {**COLOURS, "size": 16, "scale": [0.1, 0.4]}},
    ),
    "deepcluster_v2": row(
        {"kind": "deepcluster_v2", **TWO, "prototypes": 100, "temperature": 0.1, "embedding": 64, "head": HEAD}
    ),
    # Normalised over tokens (instance): what all tokens of a small untrained teacher share is no target.
    "latent_prediction": row(
        {
            "kind": "latent_prediction", "modality": "image", "view": "crop", "mask": "mask", "layers": 3, "norm": "instance",
            "norm_mean": False, "beta": 2.0, "over_features": "mean", "momentum": 0.99,
        },
        SMALL_VIT,
        views={
            "crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5},
            "mask": {"kind": "blocks", "patch_size": 4, "ratio": 0.6, "smallest": 4},
        },
        batch=96,
        steps=350,
    ),
    "mae": row(
        {
            "kind": "mae", "modality": "image", "view": "crop", "patch_values": 48,
            "decoder": {"width": 64, "depth": 1, "heads": 2},
        },
        VIT,
        views={"crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5}, "order": {"kind": "order", "patch_size": 4}},
        optimizer={**ADAMW, "betas": [0.9, 0.95]},
    ),
    # MaskFeat: histograms of gradients of hidden patches, of 8 pixels: those of 4 are hardly told by their surroundings. The best
    # guess that sees nothing has a loss of 0.39 * zero_loss, the variance of the histograms.
    "masked_prediction, histograms": row(
        {
            "kind": "masked_prediction", "modality": "image", "view": "crop", "mask": "mask",
            "targets": {"kind": "hog", "values": 27, "cell": 8}, "predictor": {"kind": "linear"},
        },
        {**SMALL_VIT, "patch_size": 8},
        bars=("loss < 0.37 * zero_loss",),
        views={
            "crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5},
            "mask": {"kind": "blocks", "patch_size": 8, "ratio": 0.4, "smallest": 2},
        },
        steps=600,
    ),
    # BEiT-like: k-means codes of hidden patches.
    "masked_prediction, k-means codes": row(
        {
            "kind": "masked_prediction", "modality": "image", "view": "crop", "mask": "mask",
            "targets": {
                "kind": "codes", "rows": {"kind": "patches", "values": 48, "normalise": True},
                "quantizer": {"kind": "kmeans", "codes": 128, "rows": 20_000},
            },
            "predictor": {"kind": "linear"},
        },
        SMALL_VIT,
        bars=("accuracy > 1.5 * majority", "loss < 0.95 * chance_loss"),
        views={
            "crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5},
            "mask": {"kind": "blocks", "patch_size": 4, "ratio": 0.4, "smallest": 4},
        },
        batch=96,
        steps=300,
    ),
    "denoise": row(
        {
            "kind": "denoise", "modality": "image", "view": "crop", "noise": {"kind": "gaussian", "deviation": 0.25},
            "patch_values": 48, "predictor": {"kind": "bert"},
        },
        SMALL_VIT,
        bars=("loss < 0.3 * untouched_loss",),
        views={"crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5}},
        batch=96,
        steps=300,
    ),
    "denoise, noise": row(
        {
            "kind": "denoise", "modality": "image", "view": "crop", "noise": {"kind": "diffusion"}, "target": "noise",
            "patch_values": 48, "predictor": {"kind": "bert"},
        },
        SMALL_VIT,
        bars=("loss < 0.3 * untouched_loss",),
        views={"crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5}},
        batch=96,
        steps=300,
    ),
    "pretext": row(
        {"kind": "pretext", "modality": "image", "view": "crop", "task": {"kind": "rotation"}, "predictor": {"kind": "linear"}},
        bars=("accuracy > 0.45",),
        views={
            "crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5}, "choice": {"kind": "choice", "choices": 4},
        },
        steps=500,
    ),
    "colorization": row(
        {
            "kind": "colorization", "modality": "image", "view": "crop", "patch_size": 4, "cell": 4,
            "predictor": {"kind": "bert"},
        },
        SMALL_VIT,
        bars=("loss < 0.95 * chance_loss",),
        views={"crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5}},
        batch=96,
        steps=900,
    ),
    # iBOT: DINO, and the assignments of masked patches.
    "dino, patches": row(
        {
            "kind": "dino", **TWO, "momentum": {"kind": "cosine", "start": 0.97, "final": 1.0}, "temperature": 0.1,
            "teacher_temperature": 0.04, "targets": {"kind": "centring", "momentum": 0.9}, "prototypes": 1024, "embedding": 64,
            "head": {**HEAD, "layers": 3}, "patches": {"mask": "mask", "targets": {"kind": "centring", "momentum": 0.9}},
        },
        SMALL_VIT,
        views={
            **VIEWS,
            "mask": {"kind": "blocks", "patch_size": 4, "ratio": [0.1, 0.5], "probability": 0.5, "smallest": 2},
        },
        batch=64,
        steps=300,
    ),
    "jepa": row(
        {
            "kind": "jepa", "modality": "image", "view": "crop", "masks": ["blocks"], "beta": 1.0,
            "predictor": {"width": 48, "depth": 2, "heads": 2}, "momentum": {"kind": "linear", "start": 0.99, "final": 1.0},
        },
        SMALL_VIT,
        bars=("target_std > 0.1",),
        views={
            "crop": {"kind": "resized_crop", "scale": [0.5, 1.0], "flip": 0.5},
            "blocks": {"kind": "jepa", "patch_size": 4},
        },
        batch=96,
        steps=300,
    ),
    # As in the recipe, with four tiles, as nine would have 10 pixels; of 2,000 pictures, so that the bank is moved 40 times.
    "pirl": row(
        {
            "kind": "pirl", "modality": "image", "view": "augmented", "tiles": "tiles", "negatives": 1024, "temperature": 0.1,
            "jigsaw": {"permutations": 24, "side": 2, "tile": 16}, "embedding": 64, "head": {**HEAD, "norm": "none"},
        },
        train="few",
        views={
            **VIEWS, "tiles": {**COLOURS, "scale": [0.6, 1.0], "size": 40, "grayscale": 0.66},
            "choice": {"kind": "choice", "choices": 24},
        },
        steps=640,
    ),
    # SeLA; strength is that of the paper for CIFAR-10, where there are 128 labels, too.
    "self_labels": row(
        {
            "kind": "self_labels", "modality": "image", "view": "augmented", "labels": 128, "every": "2 epochs",
            "labelling": {"kind": "optimal_transport", "strength": 10.0},
        },
        steps=560,
    ),
    "self_labels, clusters": row(
        {
            "kind": "self_labels", "modality": "image", "view": "augmented", "labels": 128, "every": "1 epochs",
            "labelling": {"kind": "clusters", "components": 32, "iterations": 20},
        },
        steps=560,
    ),
    # Tiles of 16 pixels in cells of 18 and 20: of the middle one and one of its eight neighbours, or of all four.
    "pretext, context": row(
        {
            "kind": "pretext", "modality": "image", "view": "crop", "predictor": {"kind": "bert"},
            "task": {"kind": "context", "tile": 16, "standardise": True, "channels": "one"},
        },
        bars=("accuracy > 0.2",),
        views={"crop": {**GREY, "grayscale": 0.0, "size": 56}, "choice": {"kind": "choice", "choices": 8}},
        steps=1500,
    ),
    "pretext, jigsaw": row(
        {
            "kind": "pretext", "modality": "image", "view": "crop", "predictor": {"kind": "bert"},
            "task": {"kind": "jigsaw", "permutations": 24, "side": 2, "tile": 16, "standardise": True},
        },
        bars=("accuracy > 0.12",),
        views={"crop": {**GREY, "size": 40}, "choice": {"kind": "choice", "choices": 24}},
        steps=400,
    ),
}  # fmt: skip
ROWS |= {
    # Crops of one pixel: a flat picture is the same however it is turned.
    "pretext, control": control(
        ROWS["pretext"],
        ("accuracy < 0.3",),
        views={**ROWS["pretext"]["views"], "crop": {"kind": "resized_crop", "scale": [0.001, 0.001], "flip": 0.5}},
        steps=200,
    ),
    # All patches but one are hidden.
    "masked_prediction, k-means codes, control": control(
        ROWS["masked_prediction, k-means codes"],
        ("loss > 0.95 * chance_loss",),
        views={
            **ROWS["masked_prediction, k-means codes"]["views"],
            "mask": {"kind": "blocks", "patch_size": 4, "ratio": 0.984, "smallest": 4},
        },
        steps=200,
    ),
}
"""Objective -> settings of its run."""
