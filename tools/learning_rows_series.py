"""Settings of the runs of `learning.py` on series: electrocardiograms, and envelopes of spoken digits.

Pretraining sees four rhythms; labels are of four others (`learning_data.NEW_RHYTHMS`). Of digits, two speakers are new.
"""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, control, row

HEART = {"channels": 3, "rate": 100, "seconds": 5.0, "mean": [56, 78, -29], "std": [165, 227, 165]}
"""Statistics in microvolts, as `configs/series` has them."""
SPEECH = {"channels": 4, "rate": 100, "seconds": 0.64, "mean": [-34, -42, -47, -47], "std": [16, 17, 15, 13]}
CONV = {"kind": "series_conv", "hidden": 32, "depth": 5, "width": 64}
TRANSFORMER = {
    "kind": "series_transformer", "overlap": False, "width": 64, "depth": 3, "heads": 2, "pool": "mean", "class_token": False,
}  # fmt: skip
TS2VEC = {"kind": "ts2vec", "modality": "series", "view": "crop", "mask": "mask"}
MAE = {"kind": "mae", "modality": "series", "view": "crop", "order": "order", "mask_ratio": 0.75}
DECODER = {"width": 48, "depth": 2, "heads": 2}
WINDOW = {"crop": {"kind": "random_window"}}
RHYTHMS = {"data": "rhythms", "labelled": "labelled", "optimizer": {**ADAMW, "lr": 1e-3}}
ENVELOPES = {"data": "envelopes", "optimizer": {**ADAMW, "lr": 1e-3}}

ROWS: dict[str, dict[str, Any]] = {
    "ts2vec, rhythms": row(
        TS2VEC,
        {**CONV, **HEART, "stride": 5},
        **RHYTHMS,
        batch=32,
        steps=200,
        views={**WINDOW, "mask": {"kind": "spans", "tokens": 100, "length": 1, "ratio": 0.5}},
        bars=("loss < 0.9 * chance_loss",),
    ),
    "mae, rhythms": row(
        {**MAE, "patch_values": 30, "decoder": DECODER},
        {**TRANSFORMER, **HEART, "strides": [5, 2]},
        **RHYTHMS,
        batch=64,
        steps=900,
        views={**WINDOW, "order": {"kind": "order", "tokens": 50}},
        bars=("loss < 0.98 * zero_loss", "knn/acc1 > before/knn/acc1"),
    ),
    "pretext, arrow": row(
        {
            "kind": "pretext",
            "modality": "series",
            "view": "crop",
            "task": {"kind": "arrow", "axis": 1},
            "predictor": {"kind": "bert"},
        },
        {**TRANSFORMER, **HEART, "strides": [5, 2]},
        **RHYTHMS,
        batch=64,
        steps=300,
        views={**WINDOW, "choice": {"kind": "choice", "choices": 2}},
        bars=("accuracy > 0.8",),
    ),
    "ts2vec, envelopes": row(
        TS2VEC,
        {**CONV, **SPEECH, "stride": 1},
        **ENVELOPES,
        batch=32,
        steps=200,
        views={**WINDOW, "mask": {"kind": "spans", "tokens": 64, "length": 1, "ratio": 0.5}},
        bars=("loss < 0.85 * before/loss", "knn/acc1 > 2 * before/knn/acc1"),
    ),
}
ROWS |= {
    # Times of each recording are shuffled: noise with the values of electrocardiograms.
    "ts2vec, rhythms, control": control(ROWS["ts2vec, rhythms"], ("knn/acc1 < 1.02 * before/knn/acc1",), train="noise"),
    "mae, rhythms, control": control(ROWS["mae, rhythms"], ("knn/acc1 < before/knn/acc1",), train="noise"),
}
"""Objective -> settings of its run."""
