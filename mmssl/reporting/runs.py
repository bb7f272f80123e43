"""A table of run folders: how far they are, their figures, and where their recipes differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.core.errors import RecipeError
from mmssl.recipe.flat import leaves
from mmssl.recipe.strict_yaml import parse_yaml
from mmssl.training.runtime.jsonl import JsonLines

SHOWN_KEYS = 8  # of those in which a recipe differs; more would make a table that no screen holds


@dataclass(frozen=True)
class RunRow:
    """A run folder.

    Attributes:
        folder: where it is.
        state: "finished", "running" (or killed without a word), "stopped", or "not begun".
        step: of the last log line; None: there is none.
        figures: loss of the last log line, and the newest value of each score.
        recipe: key path -> value.
    """

    folder: Path
    state: str
    step: int | None
    figures: dict[str, float]
    recipe: dict[str, Any]


def run_folders(places: Iterable[Path]) -> list[Path]:
    """Run folders among these folders and directly inside them, by name.

    Raises:
        RecipeError: a place is none and holds none.
    """
    found: dict[Path, None] = {}
    for place in places:
        near = (place, *sorted(place.iterdir())) if place.is_dir() else ()
        folders = [folder for folder in near if (folder / "recipe.yaml").is_file()]
        if not folders:
            got = "holds no run folder" if place.is_dir() else "is a file" if place.exists() else "does not exist"
            raise RecipeError(f"got {str(place)!r}, which {got}; wanted a folder with recipe.yaml, or a folder of such")
        found |= dict.fromkeys(folders)
    return list(found)


def read_run(folder: Path) -> RunRow:
    """Read a run folder.

    Raises:
        RecipeError: its recipe.yaml cannot be read.
    """
    records = JsonLines(folder / "metrics.jsonl").read()
    logged = [record for record in records if "progress" in record]
    scores = {name: x for record in records if "progress" not in record for name, x in record.items() if name != "step"}
    figures = {"loss": logged[-1].get("loss")} if logged else {}
    figures |= {name: x for name, x in scores.items() if isinstance(x, int | float)}
    if logged and logged[-1]["progress"] >= 1:
        state = "finished"
    elif (folder / ".lock").exists():
        state = "running"
    else:
        state = "stopped" if logged else "not begun"
    document = parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml")).value
    step = int(logged[-1]["step"]) if logged else None
    return RunRow(folder, state, step, {name: x for name, x in figures.items() if x is not None}, leaves(document))


def recipe_differences(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """Of each run, the keys of its recipe in which not all runs agree, but for the name; those that it lacks are missing."""
    keys = dict.fromkeys(key for row in rows for key in row.recipe if key != "name")
    lacking = object()
    varied = [
        key for key in keys if any(row.recipe.get(key, lacking) != rows[0].recipe.get(key, lacking) for row in rows)
    ]
    return [{key: row.recipe[key] for key in varied if key in row.recipe} for row in rows]


def runs_table(rows: Sequence[RunRow], metrics: Sequence[str] = ()) -> str:
    """A Markdown table with aligned columns.

    Args:
        rows: runs.
        metrics: figures to show; none: the loss and the first score with an interval of each evaluator, else its first.
    """
    known = dict.fromkeys(name for row in rows for name in row.figures)
    intervals = [name for name in known if f"{name}_ci95_low" in known]  # a main score has one; a count has none
    first = {name.split("/")[0]: name for name in reversed([*intervals, *known])}
    shown = list(metrics) or [name for name in known if first[name.split("/")[0]] == name]
    lines = [["run", "state", "step", *shown, "differs in"]]
    for row, different in zip(rows, recipe_differences(rows), strict=True):
        figures = [f"{row.figures[name]:.4g}" if name in row.figures else "–" for name in shown]
        keys = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in different.items()]
        more = [f"{len(keys) - SHOWN_KEYS} more (mmssl recipes diff A B)"] if len(keys) > SHOWN_KEYS else []
        what = ", ".join([*keys[:SHOWN_KEYS], *more])
        step = "–" if row.step is None else str(row.step)
        lines.append([row.folder.name, row.state, step, *figures, what.replace("|", "\\|") or "–"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
