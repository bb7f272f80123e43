"""Sweeps: the runs of a recipe over values of some keys, and over seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mmssl.core.errors import RecipeError

_OPEN, _CLOSED = "[{(", "]})"


@dataclass(frozen=True)
class Element:
    """One run of a sweep: changes to the recipe, a name among them."""

    name: str
    overrides: tuple[str, ...]


def elements(name: str, sweeps: Sequence[str], seeds: int = 1, first_seed: int = 0) -> list[Element]:
    """All runs of a sweep, in order: the last key changes first, seeds before it.

    Args:
        name: of the recipe; those of the runs begin with it.
        sweeps: "key.path=a,b,c" each; every combination is a run.
        seeds: number of seeds of each combination, from `first_seed` on.
        first_seed: the recipe's.

    Raises:
        RecipeError: no key or no value, or a key twice.
    """
    if seeds < 1:
        raise RecipeError(f"--seeds: got {seeds}, wanted at least 1")
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys) or (seeds > 1 and "seed" in keys) or "name" in keys:
        raise RecipeError(f"--sweep: got keys {keys}, wanted each once, not name, and not seed beside --seeds")
    if seeds > 1:
        axes.append(("seed", [str(first_seed + number) for number in range(seeds)]))
    found = []
    for values in product(*(values for _, values in axes)):
        chosen = list(zip([key for key, _ in axes], values, strict=True))
        words = [f"{key.rpartition('.')[2]}-{value}" for key, value in chosen]
        full = re.sub(r"[^A-Za-z0-9_.-]+", "_", ".".join([name, *words]))
        found.append(Element(full, (*(f"{key}={value}" for key, value in chosen), f"name={full}")))
    names = [element.name for element in found]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"--sweep: two runs would have one folder: {', '.join(names)}; give values that differ in words"
        )
    return found


def split_values(text: str) -> list[str]:
    """Split at commas that stand outside of brackets and quotes: "1,[2,3]" -> "1", "[2,3]"."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += 0 if quote else (sign in _OPEN) - (sign in _CLOSED)
        if sign == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += sign
    return [value.strip() for value in values]


def _axis(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    values = split_values(text)
    if not key or not equals or not all(values):
        raise RecipeError(f"--sweep: got {sweep!r}, wanted KEY.PATH=A,B,C with a value between all commas")
    return key, values
