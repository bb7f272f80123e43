"""Models of other libraries as parts of a recipe: modalities, encoders, and the objective that compares them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.core.errors import CheckpointError, os_words
from mmssl.encoders.weight_files import read_state
from mmssl.interop.shared_space import shared_space

PlainValues = dict[str, Any]
"""Part of a recipe, as in YAML."""
MAX_SCALE = 100.0
"""Largest logit scale of CLIP's training."""
BICUBIC, BILINEAR = 3, 2
"""Numbers of Pillow's filters, as preprocessor_config.json has them."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""Files of a tokenizer in a model folder; all have no code."""


@dataclass(frozen=True)
class Described:
    """A two-tower model of another library as a recipe of ours would train it.

    Attributes:
        weights: file or folder of its tensors.
        modalities, encoders: name -> settings, as in a recipe.
        objective: settings, as in a recipe.
        notes: what differs from the source, one sentence each.
    """

    weights: Path
    modalities: dict[str, PlainValues]
    encoders: dict[str, PlainValues]
    objective: PlainValues
    notes: tuple[str, ...] = ()


def pair_objective(weights: Path, pair: tuple[str, str], embedding: int, identity: tuple[str, ...]) -> PlainValues:
    """The objective of a checkpoint: CLIP's loss, or SigLIP's where there is a bias, at its temperature.

    Args:
        weights: of the model.
        pair: its two modalities, texts second.
        embedding: E.
        identity: modalities whose encoders end in the shared space.

    Raises:
        CheckpointError: there is no temperature.
    """
    space = shared_space(read_state(weights))
    if "logit_scale" not in space:
        raise CheckpointError(f"{str(weights)!r} has no logit_scale, wanted a model that compares two modalities")
    scale = math.exp(float(space["logit_scale"][0]))
    largest = MAX_SCALE if scale <= MAX_SCALE * 1.001 else float(10 ** math.ceil(math.log10(scale)))
    values: PlainValues = {
        "kind": "clip",
        "pairs": [list(pair)],
        "views": {pair[0]: "crop", pair[1]: "tokens"},
        "embedding": embedding,
        "temperature": max(round(1 / scale, 6), 1 / largest),
    }
    if largest != MAX_SCALE:
        values["max_scale"] = largest
    if "logit_bias" in space:
        values |= {"loss": "sigmoid", "bias": round(float(space["logit_bias"][0]), 6)}
    if identity:
        values["heads"] = {name: {"kind": "identity"} for name in identity}
    return values


def image_modality(size: int, *, squash: bool, interpolation: str) -> PlainValues:
    """Settings of pictures that are prepared as for the model: training crops, and the view "eval"."""
    crop: PlainValues = {"kind": "resized_crop", "scale": [0.9, 1.0]}
    values: PlainValues = {"kind": "image", "size": size, "views": {"crop": crop}}
    if squash:
        values["fit"] = "squash"
    if interpolation != "bicubic":
        values["interpolation"] = crop["interpolation"] = interpolation
    return values


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of transformers."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES if name != "special_tokens_map.json")


def hf_tokenizer(folder: Path, context_length: int, clean: str | None = None) -> PlainValues:
    """Settings of a tokenizer of transformers in a folder."""
    values: PlainValues = {"kind": "hf", "path": str(folder.absolute()), "context_length": context_length}
    return values | ({"clean": clean} if clean is not None else {})


def read_json(file: Path) -> PlainValues:
    """The mapping in a JSON file.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {str(file)!r}: {os_words(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(file)!r} holds a {type(values).__name__}, wanted a mapping")
    return values
