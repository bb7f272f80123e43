"""Recipes by name: those that come with mmssl, and files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmssl
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.recipe.recipe import Recipe, load_recipe

LAUNCHERS = "accelerate/"
"""Folder beside the recipes with configurations of `accelerate launch`."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with mmssl, e.g. "image_text/vit_b_32"."""
    inside = Path(mmssl.__file__).parent / "configs"
    folder = inside if inside.is_dir() else Path(mmssl.__file__).parent.parent / "configs"
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in names.items() if not name.startswith(LAUNCHERS)}


def find_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML path or of a shipped name, with overrides.

    Raises:
        RecipeError: no such file or name, or mistakes in it.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return load_recipe(path, overrides)
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(
            f"no file {name!r} and no shipped recipe of that name{did_you_mean(name, shipped)}; shipped: {', '.join(shipped)}"
        )
    return load_recipe(shipped[name], overrides)
