"""Find recipes by name: those shipped with mmssl, and YAML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mmssl
from mmssl.core.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from mmssl.recipe.recipe import Recipe

LAUNCHERS = "accelerate/"
"""Folder beside the recipes with configurations of `accelerate launch`."""
SUITES = "suites/"
"""Folder beside the recipes with suites of evaluators."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe, e.g. "image_text/vit_b_32"."""
    return {name: path for name, path in _shipped().items() if not name.startswith((LAUNCHERS, SUITES))}


def shipped_suites() -> dict[str, Path]:
    """Name -> file of every shipped suite, e.g. "image_text"."""
    return {name.removeprefix(SUITES): path for name, path in _shipped().items() if name.startswith(SUITES)}


def _shipped() -> dict[str, Path]:
    inside = Path(mmssl.__file__).parent / "configs"
    folder = inside if inside.is_dir() else Path(mmssl.__file__).parent.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        RecipeError: unknown name; says what the path is, and which shipped recipes are near.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        what = "is a folder" if Path(name).is_dir() else "is a file" if Path(name).is_file() else "is no file"
        inside = [known for known in shipped if known.startswith(f"{name.strip('/')}/")]
        run = Path(name) / "recipe.yaml"
        near = f": its recipes are {', '.join(inside)}" if inside else did_you_mean(name, shipped)
        near = f": a run is resumed by its {str(run)!r}" if run.is_file() else near
        raise RecipeError(f"{name!r} {what} and no shipped recipe{near}; `mmssl recipes` lists those")
    return shipped[name]


def recipe_summary(path: Path) -> str:
    """First sentence of the comment atop a recipe, without its full stop."""
    comment = "\n".join(line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    paragraph = " ".join(comment.split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z])", paragraph)[0].removesuffix(".")


def find_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML path or of a shipped name, with overrides.

    Raises:
        RecipeError: no such file or name, or mistakes in it.
    """
    from mmssl.recipe.recipe import load_recipe  # imports torch; the names of recipes do without it

    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return load_recipe(path, overrides)
    return load_recipe(shipped_recipe(name), overrides)
