"""Recipes of folders that can be moved: `{folder}` stands for the folder of the recipe's file, and tokenizers lie in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmssl.data.modalities.tokenizers import HfTokenizerConfig
from mmssl.interop.described import TOKENIZER_FILES
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import HERE

TOKENIZER = "tokenizer"
"""Folder of tokenizers in the folder of a model, with one folder a modality."""


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
        for file in TOKENIZER_FILES:
            if (tokenizer.path / file).is_file():
                shutil.copyfile(tokenizer.path / file, copy / file)
        moved = tokenizer.model_copy(update={"path": Path(HERE, TOKENIZER, name)})
        modalities[name] = config.model_copy(update={"tokenizer": moved})
    return recipe.model_copy(update={"modalities": modalities})
