"""The table of the main scores of all tasks, and rows of any kind as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from mmssl.core.config import Config
from mmssl.core.evaluator import Score
from mmssl.data.corruption import SEVERITIES
from mmssl.evaluation.common import metric_context

UNUSUAL = ("sizes", "lengths", "average", "precision", "max_samples")
"""Settings that stand beside the scores wherever they are changed, so that nobody takes these for the usual ones."""
CORRUPTED = "_corrupted"
"""Ending of a mean over all corruptions; it tells that a metric was measured under corruption."""


@dataclass(frozen=True)
class ScoreRow:
    """One score of the table of all tasks; None: not defined. clean: of a score under corruption, the one without."""

    task: str
    metric: str
    value: Score
    ci95_low: float | None = None
    ci95_high: float | None = None
    chance: float | None = None
    n: int | None = None
    clean: Score = None


def unusual_settings(config: Config) -> dict[str, Any]:
    """The settings of an evaluator of `UNUSUAL` that are not their defaults."""
    changed = config.model_dump(mode="json", exclude_defaults=True)
    return {name: changed[name] for name in UNUSUAL if name in changed}


def summary_rows(task: str, scores: Mapping[str, Score], headlines: Sequence[str] = ()) -> list[ScoreRow]:
    """The headlines among the scores of a task (none given: all of them), with interval, chance and n.

    And means over severities, a row for each corruption and one for several together; see `CorruptedShards.measure`.
    """
    chosen = [name for name in headlines if name in scores]
    rows = [_row(task, scores, name, name) for name in chosen or scores]
    metrics = [name.removesuffix(CORRUPTED) for name in scores if name.endswith(CORRUPTED)]
    for metric in metrics if chosen else ():
        first = f"_{SEVERITIES[0]}"
        kinds = [name.removesuffix(first) for name in scores if name.startswith(f"{metric}_") and name.endswith(first)]
        for name in (*kinds, f"{metric}{CORRUPTED}") if len(kinds) > 1 else kinds:
            rows.append(replace(_row(task, scores, name, metric), clean=scores.get(metric)))
    return rows


def _row(task: str, scores: Mapping[str, Score], name: str, metric: str) -> ScoreRow:
    """A score, with the chance and n of a metric."""
    near, own = metric_context(scores, metric), metric_context(scores, name)
    of_direction = scores.get(f"{metric.rpartition('_')[0]}_n_queries", scores.get("n"))
    n = scores.get(f"{metric}_n", of_direction)
    return ScoreRow(
        task, name, scores.get(name), own["low"], own["high"], near["chance"], n if isinstance(n, int) else None
    )


def to_markdown(rows: Sequence[Any]) -> str:
    """Rows of dataclasses of one type as a Markdown table."""
    names = [field.name for field in fields(rows[0])] if rows else []
    lines = [names, ["---"] * len(names), *([_cell(value) for value in astuple(row)] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def to_csv(rows: Sequence[Any]) -> str:
    """Rows of dataclasses of one type as CSV, with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(field.name for field in fields(rows[0])) if rows else None
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)
    return file.getvalue()


def to_latex(rows: Sequence[Any]) -> str:
    """Rows of dataclasses of one type as a LaTeX tabular, for the package booktabs."""
    names = [field.name for field in fields(rows[0])] if rows else []
    body = [
        " & ".join(_latex(cell) for cell in line) + r" \\" for line in [names, *(map(_cell, astuple(r)) for r in rows)]
    ]
    head = [rf"\begin{{tabular}}{{{'l' * len(names)}}}", r"\toprule", *body[:1], r"\midrule"]
    return "\n".join([*head, *body[1:], r"\bottomrule", r"\end{tabular}", ""])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _latex(text: str) -> str:
    escaped: Iterable[str] = (f"\\{sign}" if sign in "_%&#${}" else sign for sign in text.replace("\\", "/"))
    return "".join(escaped)
