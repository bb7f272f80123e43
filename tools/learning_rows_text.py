"""Settings of the runs of `learning.py` on sentences."""

from __future__ import annotations

from typing import Any

from learning_rows import ADAMW, row

WORDS = {
    "kind": "text_transformer", "vocab_size": 49408, "context_length": 32, "width": 96, "depth": 3, "heads": 3, "dropout": 0.1,
}  # fmt: skip
TEXT = {"modality": "text", "view": "tokens"}
CLOSE = {"close": {"kind": "tokens", "augment": [{"kind": "delete"}]}}
"""Sentences with words left out: how near are they to each other?"""
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
        views={"order": {"kind": "words"}, **CLOSE},
        bars=("accuracy > 1.5 * majority",),
    ),
    # The recipe's single epoch; in training mode, as dropout makes the two passes.
    "simcse": row(
        {"kind": "simcse", **TEXT, "temperature": 0.05},
        WORDS,
        **{**USUAL, "optimizer": {**ADAMW, "lr": 3e-4}},
        steps=170,
        views=CLOSE,
        measured="training",
        bars=("accuracy > 0.9", "loss < 0.1 * chance_loss"),
    ),
}  # fmt: skip
"""Objective -> settings of its run."""
