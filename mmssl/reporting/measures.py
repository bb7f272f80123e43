"""Parts of a report that stand in the results of `mmssl evaluate --out FOLDER`: tables and curves of each task."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmssl.core.errors import DataError
from mmssl.reporting.figures import PERFECT, Chart, Curve

_log = logging.getLogger(__name__)

MOST_ROWS = 60
"""Rows of a table that are shown, the first ones."""
MOST: Mapping[str, int] = {"confusions": 12}
"""The same of some tables."""
CHOSEN = ("prior", "penalty", "gradient", "lr", "weight_decay")
"""What stands among the scores of a task, and is none."""
PARTS: Mapping[str, tuple[str, str]] = {
    "groups": ("Subgroups", "Every score by group, the worst first, with its number of samples and 95 % interval."),
    "corruptions": (
        "Robustness",
        "Scores under corruptions, without (0) and from severity 1 (weak) to 5 (strong), with 95 % intervals; –: no input changed.",
    ),
    "kinds": ("Kinds of choices", "Scores of given choices by relation, attribute or tag."),
    "confusions": ("Confusions", "The most frequent wrong answers."),
    "classes": ("Classes", "Recall, precision and F1 of each class, the lowest recall first."),
    "mteb": ("Tasks of mteb", "Every score of each split and subset."),
}
"""Table of a task's JSON -> title of its part, and what it says. A relation card stands among the scores."""
MATCHES = "The probability that two things match, by their cosine, as fitted; its error and thresholds stand among the scores."
CLAIMS = (
    "Share of right answers by the probability of the predicted class, with 95 % intervals, before and after a temperature that "
    "another half of the samples chose; where accuracy is confidence (dashed), probabilities can be taken as said."
)


class ScoreInterval(NamedTuple):
    """A score with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Grid:
    """A table: a name, columns, and rows of values."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class ReportPart:
    """A part of a report.

    Attributes:
        title: heading. note: what it shows, in a sentence.
        grids: tables. charts: figures.
    """

    title: str
    note: str
    grids: Sequence[Grid] = ()
    charts: Sequence[Chart] = field(default=())


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """Task -> its record, of a folder or a JSON file that `mmssl evaluate --out` wrote.

    Raises:
        DataError: no such folder or file, or no result in it.
    """
    found = {}
    for path in sorted(results.glob("*.json")) if results.is_dir() else [results] if results.is_file() else ():
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}; measure that task again") from error
        within = whole.get("records") if path == results and isinstance(whole, dict) else None
        for record in within.values() if isinstance(within, dict) else (whole,):
            if isinstance(record, dict) and isinstance(record.get("scores"), dict) and "task" in record:
                found[str(record["task"])] = record
    if not found:
        raise DataError(
            f"{results} has no results: wanted a folder that `mmssl evaluate RUN --out FOLDER` wrote, or a file of --out FILE.json"
        )
    return found


def measured_elsewhere(records: Mapping[str, Mapping[str, Any]], run: Path) -> list[ReportPart]:
    """The tasks whose checkpoint is of another run, a part of the report and a warning; empty: there are none.

    A checkpoint that is gone counts as one of the run, which was moved, if its run folder had the same name.
    """
    rows = []
    for task, record in records.items():
        path = Path(str(record.get("checkpoint")))
        moved = not path.exists() and path.parent.parent.name == run.name
        if run.resolve() not in path.resolve().parents and not moved:
            rows.append((task, str(path)))
    if not rows:
        return []
    named = ", ".join(f"{task} ({place})" for task, place in rows)
    _log.warning("results of another model than %s stand in its report: %s", run, named)
    note = "These scores are of another model than this run's."
    return [ReportPart("Results of another model", note, [Grid("", ("task", "checkpoint"), rows)])]


def report_parts(records: Mapping[str, Mapping[str, Any]]) -> list[ReportPart]:
    """The parts of results that a table of scores does not show, each where some task has it."""
    parts = [part for name, (title, note) in PARTS.items() if (part := _tables(records, name, title, note))]
    curves = _calibration(records)
    return [*parts, *([curves] if curves else []), *_left_out(records)]


def comparison(
    name: str, scores: Mapping[str, Mapping[str, Any]], other_name: str, others: Mapping[str, Mapping[str, Any]]
) -> ReportPart:
    """Scores of two runs side by side, where both have them, with their difference.

    Args:
        name, other_name: of the runs.
        scores, others: evaluator -> metric -> value.
    """
    grids = []
    for task, values in scores.items():
        shared = {
            metric: (value, others[task][metric])
            for metric, value in values.items()
            if _is_score(metric, value) and _is_score(metric, others.get(task, {}).get(metric))
        }
        if shared:
            rows = [(metric, a, b, a - b) for metric, (a, b) in shared.items()]
            grids.append(Grid(task, ("score", name, other_name, "difference"), rows))
    note = "Without intervals, as they are of the same samples: `mmssl compare` measures differences, sample by sample."
    if not grids:
        note = f"{name} and {other_name} have no score in common: evaluate both with the same suite, and give its --out folders."
    return ReportPart(f"Beside {other_name}", note, grids)


def _is_score(metric: str, value: object) -> bool:
    around = metric.endswith(("_ci95_low", "_ci95_high", "chance", "_ceiling", "_seed"))
    return isinstance(value, float) and not around and metric not in CHOSEN


def _tables(records: Mapping[str, Mapping[str, Any]], name: str, title: str, note: str) -> ReportPart | None:
    grids: list[Grid] = []
    for task, record in records.items():
        rows = record.get(name)
        if not isinstance(rows, list) or not rows:
            continue
        if name == "groups" and len({row.get("group") for row in rows}) == 1:
            continue  # there is nothing to compare
        if name == "corruptions":
            grids += _by_severity(task, rows, record["scores"])
            continue
        if name == "classes":
            rows = sorted(rows, key=lambda row: (row.get("recall") is None, row.get("recall")))
        rows = [_with_intervals(row) for row in rows]
        columns = list(rows[0])
        most = MOST.get(name, MOST_ROWS)
        shown = [[row.get(column) for column in columns] for row in rows[:most]]
        more = f", the first {most} of {len(rows)}" if len(shown) < len(rows) else ""
        grids.append(Grid(f"{task}{more}", columns, shown))
    return ReportPart(title, note, grids) if grids else None


def _by_severity(task: str, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> Iterator[Grid]:
    """A table for each score under corruptions: a row for each corruption, a column for each severity, 0 without corruption."""
    whole = [_with_intervals(row) for row in rows]
    severities = sorted({row["severity"] for row in rows})
    for metric in (name for name, value in whole[0].items() if isinstance(value, ScoreInterval)):
        cells = {(row["corruption"], row["severity"]): row[metric] for row in whole}
        clean = _with_intervals(scores).get(metric)
        kinds = dict.fromkeys(row["corruption"] for row in rows)
        made = [[kind, clean, *(cells.get((kind, severity)) for severity in severities)] for kind in kinds]
        yield Grid(f"{task}: {metric}, n {whole[0][f'{metric}_n']}", ["corruption", "0", *map(str, severities)], made)


def _with_intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row, of which those with an interval are estimates: of "x" that is "x_ci95_low", of "value" "ci95_low"."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        stem = "" if name == "value" else f"{name}_"
        if f"{stem}ci95_low" in row:
            found[name] = ScoreInterval(value, row[f"{stem}ci95_low"], row[f"{stem}ci95_high"])
        elif not name.endswith(("ci95_low", "ci95_high")):
            found[name] = value
    return found


def _calibration(records: Mapping[str, Mapping[str, Any]]) -> ReportPart | None:
    """The probability of a match by cosine, and the reliability of class probabilities: tables "curve" and "reliability"."""
    charts: list[Chart] = []
    grids: list[Grid] = []
    notes: dict[str, None] = {}
    for task, record in records.items():
        rows = record.get("curve")
        if isinstance(rows, list) and len(rows) > 1:
            points = [(float(row["cosine"]), float(row["probability"])) for row in rows]
            charts.append(Chart(f"{task}: probability of a match", {"probability": points}, x="cosine"))
            notes[MATCHES] = None
        rows = record.get("reliability")
        if isinstance(rows, list) and rows:
            chart, grid = _reliability(task, rows)
            charts.append(chart)
            grids.append(grid)
            notes[CLAIMS] = None
    return ReportPart("Calibration", " ".join(notes), grids, charts) if charts else None


def _reliability(task: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, Grid]:
    """Accuracy by confidence, before and after the temperature, as a figure and as a table of bins."""
    curves: dict[str, Curve] = {}
    lines = []
    for name in ("before", "after"):
        bins = [_with_intervals(row) for row in rows if row["probabilities"] == name]
        curves[name] = [(row["confidence"], row["accuracy"].value) for row in bins]
        lines += [
            (name, f"{row['from']:.2f} to {row['to']:.2f}", row["n"], row["confidence"], row["accuracy"])
            for row in bins
        ]
    chart = Chart(f"{task}: accuracy by confidence", {**curves, PERFECT: [(0.0, 0.0), (1.0, 1.0)]}, x="confidence")
    return chart, Grid(f"{task}: reliability", ("probabilities", "bin", "n", "confidence", "accuracy"), lines)


def _left_out(records: Mapping[str, Mapping[str, Any]]) -> Iterator[ReportPart]:
    """Samples that took no part in each task."""
    names = ("n", "n_excluded", "n_train_excluded", "n_skipped", "n_train_skipped")
    rows = [
        (task, *(record["scores"].get(name) for name in names))
        for task, record in records.items()
        if any(record["scores"].get(name) is not None for name in names)
    ]
    if rows:
        note = "Excluded samples lack a modality or a label; skipped ones could not be decoded."
        yield ReportPart("Samples that took no part", note, [Grid("", ("task", *names), rows)])
