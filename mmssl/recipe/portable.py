"""Recipes of folders that can be moved: `{folder}` stands for the folder of the recipe's file, and tokenizers lie in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmssl.data.modalities.tokenizers import HfTokenizerConfig
from mmssl.interop.described import TOKENIZER_FILES, read_json
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import HERE

TOKENIZER = "tokenizer"
"""Folder of tokenizers in the folder of a model, with one folder a modality."""
CONFIG = "config.json"


def with_tokenizers(recipe: Recipe, folder: Path) -> Recipe:
    """Copy the tokenizers of transformers that a recipe names into a folder; returns the recipe that names the copies.

    Args:
        recipe: its tokenizers have absolute places.
        folder: of the model, where the recipe will be written as a file.

    Raises:
        OSError: a file cannot be copied.
    """
    modalities: dict[str, Any] = dict(recipe.modalities)
    for name, config in recipe.modalities.items():
        tokenizer = getattr(config, "tokenizer", None)
        if not isinstance(tokenizer, HfTokenizerConfig):
            continue
        copy = folder / TOKENIZER / name
        copy.mkdir(parents=True)
        for file, data in tokenizer_files(tokenizer.path).items():
            (copy / file).write_bytes(data)
        moved = tokenizer.model_copy(update={"path": Path(HERE, TOKENIZER, name)})
        modalities[name] = config.model_copy(update={"tokenizer": moved})
    return recipe.model_copy(update={"modalities": modalities})


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a tokenizer of transformers is made of, by name; empty: it holds none.

    Of config.json that is the kind of model, by which transformers chooses the class of some tokenizers (SigLIP 2's makes lower
    case).

    Raises:
        OSError: a file cannot be read.
    """
    found = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    config = folder / CONFIG
    if found and config.is_file() and "model_type" in (settings := read_json(config)):
        found[CONFIG] = json.dumps({"model_type": settings["model_type"]}).encode()
    return found
