"""Results as strict JSON and as one self-contained HTML report."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mmssl.reporting.figures as figures
from mmssl.evaluation.common import metric_context
from mmssl.reporting.environment import redact, redact_text
from mmssl.reporting.figures import Curve
from mmssl.reporting.gallery import Answer, Gallery, Similarity
from mmssl.reporting.measures import ReportPart
from mmssl.reporting.score_table import number_text, printable, score_table
from mmssl.reporting.shown import ShownSample
from mmssl.training.health import ALARM
from mmssl.training.runtime.jsonl import JsonLines

TEMPLATE = Path(__file__).with_name("report.html.jinja")

LARGEST_PAGE = 10_000_000
"""Bytes of a report."""
LARGEST_CHARTS = 2_000_000
"""Characters of the figures of training in a report."""

HEADLINES = re.compile(r"acc1|(in_sync_)?acc|.+_R@1|(.+_)?mAP")
"""Scores in large print at the top."""


def write_results(path: Path | str, results: Mapping[str, Any]) -> None:
    """Write results as strict JSON (no NaN), atomically.

    Raises:
        ValueError: a number is not finite; says which. A score that is not defined is None.
    """
    for name, value in _leaves(results):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"got {value} for {name!r}, wanted a finite number, or None where the score is not defined"
            )
    write_text_atomically(Path(path), json.dumps(results, allow_nan=False, indent=2, ensure_ascii=False) + "\n")


def read_curves(path: Path | str) -> dict[str, list[tuple[float, float]]]:
    """Curves of a run from its `metrics.jsonl`: metric -> (step, value) pairs, numbers only; none, where there is no such file.
    A truncated last line is ignored.

    Raises:
        ValueError: another line is no JSON object with a step; says which.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f'{path}, line {number}: got {line[:80]!r}, wanted a JSON object with a "step"') from error
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, []).append((step, float(value)))
    return curves


def read_warnings(path: Path | str) -> list[tuple[int, str]]:
    """Warnings of a run from its `metrics.jsonl`: (step, sentences), in order."""
    records = JsonLines(Path(path)).read()
    return [
        (record["step"], str(value))
        for record in records
        for name, value in record.items()
        if name.startswith(f"{ALARM}/")
    ]


def write_report(
    path: Path | str,
    *,
    title: str,
    curves: Mapping[str, Curve] | None = None,
    warnings: Sequence[tuple[int, str]] = (),
    results: Mapping[str, Any] | None = None,
    galleries: Sequence[Gallery] = (),
    similarities: Sequence[Similarity] = (),
    parts: Sequence[ReportPart] = (),
    environment: Mapping[str, str] | None = None,
    recipe_text: str = "",
) -> None:
    """Write one self-contained HTML file: no script, no network, all data escaped.

    Figures of training beyond `LARGEST_CHARTS` are left out, and the galleries of a page beyond `LARGEST_PAGE`; the page says so.

    Args:
        path: the file; replaced atomically.
        title: heading.
        curves: metric -> (step, value) pairs, see `read_curves`.
        warnings: (step, sentences), see `read_warnings`.
        results: evaluator -> {metric: value}; other values are shown under "other".
        galleries: see `gallery.gallery`.
        similarities: see `gallery.similarity`.
        parts: further tables and figures, see `measures`.
        environment: see `environment.environment`; secrets are hidden here too.
        recipe_text: the resolved recipe; secrets are hidden.
    """
    import jinja2

    results = results or {}
    scores = {name: value for name, value in results.items() if isinstance(value, Mapping)}
    other = {name: value for name, value in results.items() if name not in scores}
    plots, more = _plots(figures.charts(curves or {}, evaluators=list(scores)))
    # `autoescape` is off by default in jinja2, and captions are anybody's text.
    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = loader.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = {
        "title": printable(title),
        "headlines": list(_headlines(scores)),
        "tables": [score_table(name, values) for name, values in scores.items()]
        + ([score_table("other", other)] if other else []),
        "charts": plots,
        "charts_left_out": more,
        "warnings": [(step, printable(sentences)) for step, sentences in warnings],
        "galleries": [_gallery(gallery) for gallery in galleries],
        "parts": [_part(number, part) for number, part in enumerate(parts)],
        "heats": [_heat(similarity) for similarity in similarities],
        "environment": {printable(name): printable(value) for name, value in redact(environment or {}).items()},
        "recipe": printable(redact_text(recipe_text)),
    }
    html = template.render(page, galleries_left_out=False)
    if len(html.encode()) > LARGEST_PAGE:
        html = template.render({**page, "galleries": [], "heats": []}, galleries_left_out=True)
    write_text_atomically(Path(path), html)


def _plots(charts: Sequence[figures.Chart]) -> tuple[list[dict[str, str]], int]:
    """The first charts, of at most `LARGEST_CHARTS` characters together, and how many more there are."""
    plots: list[dict[str, str]] = []
    room = LARGEST_CHARTS
    for chart in charts:
        uri = figures.chart_uri(chart)
        room -= len(uri)
        if room < 0:
            break
        plots.append({"title": chart.title, "uri": uri})
    return plots, len(charts) - len(plots)


def _headlines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for evaluator, values in scores.items():
        for metric, value in values.items():
            on_card = f"{metric}_n" in values  # these have a separate table, with all that is said here
            if HEADLINES.fullmatch(metric) and isinstance(value, int | float) and not on_card:
                around = metric_context(values, metric)
                yield {
                    "name": printable(f"{evaluator}: {metric}".replace("_", " ")),
                    "value": f"{100 * value:.1f} %",
                    "share": _percent(value),
                    "low": _percent(around["low"]),
                    "width": _percent((around["high"] or 0) - (around["low"] or 0)),
                    "chance": _percent(around["chance"]),
                    "detail": ", ".join(f"{name} {text}" for name, text in _details(around)),
                }


def _details(around: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    if around["low"] is not None and around["high"] is not None:
        yield "95 %:", f"{100 * around['low']:.1f} to {100 * around['high']:.1f}"
    if around["chance"] is not None:
        yield "chance", f"{100 * around['chance']:.2g}"
    if around["ceiling"] is not None and around["ceiling"] < 1:
        yield "ceiling", f"{100 * around['ceiling']:.1f}"


def _part(number: int, part: ReportPart) -> dict[str, Any]:
    return {
        "id": f"part-{number}",
        "title": printable(part.title),
        "note": printable(part.note),
        "charts": [{"title": printable(chart.title), "uri": figures.chart_uri(chart)} for chart in part.charts],
        "grids": [
            {
                "name": printable(grid.name),
                "columns": [printable(str(column).replace("_", " ")) for column in grid.columns],
                "rows": [[printable(number_text(cell)) for cell in row] for row in grid.rows],
            }
            for grid in part.grids
        ],
    }


def _gallery(gallery: Gallery) -> dict[str, Any]:
    return {
        "title": printable(gallery.title),
        "sections": [
            {
                "name": printable(name),
                "picks": [
                    {
                        "query": _thing(pick.query),
                        "rank": pick.rank,
                        "truth": _answer(pick.truth),
                        "found": any(answer.right for answer in pick.answers),
                        "answers": [_answer(answer) for answer in pick.answers],
                    }
                    for pick in picks
                ],
            }
            for name, picks in gallery.sections.items()
        ],
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {**_thing(answer.thing), "score": f"{answer.score:.3f}", "right": answer.right, "same": answer.same}


def _thing(thing: ShownSample) -> dict[str, str]:
    return {name: printable(value) for name, value in asdict(thing).items()}


def _heat(similarity: Similarity) -> dict[str, Any]:
    matrix = similarity.matrix.tolist()
    values = [value for row in matrix for value in row]
    low, high = min(values, default=0.0), max(values, default=1.0)
    rows = []
    for i, (thing, row) in enumerate(zip(similarity.rows, matrix, strict=True)):
        cells = []
        for j, value in enumerate(row):
            back, ink = figures.heat_colours(value, low, high)
            cells.append(
                {"value": f"{round(value, 2) + 0.0:.2f}".replace("0.", "."), "back": back, "ink": ink, "own": i == j}
            )
        rows.append({"thing": _thing(thing), "cells": cells})
    return {
        "title": printable(similarity.title),
        "columns": [_thing(thing) for thing in similarity.columns],
        "rows": rows,
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * min(1.0, max(0.0, value)), 2)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{name}[{i}]")
    else:
        yield name, value


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file atomically: a crash or a full disk leaves the old one. Its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
