"""Settings of the runs of `learning.py` on sentences."""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, row

WORDS = {
    "kind": "text_transformer", "vocab_size": 49408, "context_length": 32, "width": 96, "depth": 3, "heads": 3, "dropout": 0.1,
}  # fmt: skip
TEXT = {"modality": "text", "view": "tokens"}
USUAL = {"data": "sentences", "batch": 64, "optimizer": {**ADAMW, "lr": 1e-3}}

ROWS: dict[str, dict[str, Any]] = {
    # Of the masked words of a batch, no guess without context is right more often than the most frequent one.
    "masked_prediction, words": row(
        {
            "kind": "masked_prediction", **TEXT, "mask": "order", "mean": "tokens", "predictor": {"kind": "bert"},
            "targets": {"kind": "words", "ratio": 0.15, "random": 0.1, "kept": 0.1},
        },
        {**WORDS, "causal": False},
        **USUAL,
        steps=400,
        views={"order": {"kind": "words"}},
        bars=("accuracy > 1.5 * majority",),
    ),
    # data2vec; 35 % of the words, in spans of four.
    "latent_prediction, words": row(
        {
            "kind": "latent_prediction", **TEXT, "mask": "order", "words": {"ratio": 0.35, "span": 4}, "layers": 3,
            "norm": "layer", "norm_mean": False, "beta": 4.0, "over_features": "sum", "mean": "tokens", "momentum": 0.99,
            "predictor_layers": 2,
        },
        {**WORDS, "causal": False},
        **{**USUAL, "optimizer": {**ADAMW, "lr": 5e-4}},
        steps=400,
        views={"order": {"kind": "words"}},
        bars=("target_std > 0.1",),
    ),
    # `configs/text/simcse_small` to its end; in training mode, as dropout makes the two passes.
    "simcse": row(
        {"kind": "simcse", **TEXT, "temperature": 0.05},
        {**WORDS, "width": 256, "depth": 4, "heads": 4},
        **{**USUAL, "optimizer": {**ADAMW, "lr": 3e-4}},
        steps=175,
        views={},
        measured="training",
        bars=("loss < 0.5 * before/loss", "alignment < before/alignment", "uniformity < before/uniformity"),
    ),
}  # fmt: skip
"""Objective -> settings of its run."""
