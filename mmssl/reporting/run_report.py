"""Write the HTML report of a finished run, with scores, curves and gallery."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError, MmsslError, os_words
from mmssl.evaluation.retrieval import Retrieval
from mmssl.recipe.load import load
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe
from mmssl.reporting.environment import environment
from mmssl.reporting.figures import Chart, chart_png, charts
from mmssl.reporting.gallery import Gallery, Similarity, showcase
from mmssl.reporting.measures import Part
from mmssl.reporting.report import read_curves, read_warnings, write_report, write_results


def report_run(
    recipe: Recipe,
    path: Path | None = None,
    results: Mapping[str, Any] | None = None,
    model: Model | None = None,
    failures: Mapping[str, MmsslError] | None = None,
    parts: Sequence[Part] = (),
    figures: Path | None = None,
) -> Path:
    """Write the report of a finished run.

    Args:
        recipe: the run's recipe; its first successful retrieval evaluator fills the gallery.
        path: the file; default: report.html in the run folder.
        results: metric table; default: the latest scores in the run's metrics.
        model: the trained model; default: loaded from the run folder.
        failures: name of an evaluator -> error that stands in the metric table in place of scores.
        parts: further tables and figures, see `measures`.
        figures: folder for each figure as PNG, and the scores as metrics.json; None: they are not written.
    """
    path = path or recipe.folder / "report.html"
    failures = failures or {}
    metrics = recipe.folder / "metrics.jsonl"
    curves = read_curves(metrics)
    evaluators = recipe.build_evaluators(recipe.build_modalities())
    retrieval = next(
        (e for name, (e, _) in evaluators.items() if isinstance(e, Retrieval) and name not in failures), None
    )
    galleries: list[Gallery] = []
    similarity: Similarity | None = None
    if retrieval is not None:
        with retrieval:
            galleries, similarity, embeddings = showcase(retrieval, (model or load(recipe.folder)).embedding)
        note = "Items of the retrieval gallery. Modalities that lie apart share a space, but not a place in it."
        parts = [Part("Embedding map", note, charts=[embeddings]), *parts]
    scores = {
        **(results if results is not None else latest_scores(curves, list(recipe.evaluators))),
        **{name: {"error": str(error)} for name, error in failures.items()},
    }
    if figures is not None:
        drawn = [*charts(curves, evaluators=list(scores)), *(chart for part in parts for chart in part.charts)]
        write_figures(figures, drawn, scores)
    write_report(
        path,
        title=recipe.name,
        curves=curves,
        warnings=read_warnings(metrics),
        results=scores,
        galleries=galleries,
        similarity=similarity,
        parts=parts,
        environment=environment(),
        recipe_text=recipe.to_yaml(),
    )
    return path


def write_figures(folder: Path, drawn: Sequence[Chart], scores: Mapping[str, Any]) -> None:
    """Write figures as PNG, named by their titles, and scores as metrics.json.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, chart in enumerate(drawn):
            name = re.sub(r"[^\w.-]+", "_", chart.title, flags=re.ASCII).strip("_.")[:80]
            (folder / f"{number:02d}_{name}.png").write_bytes(chart_png(chart))
        write_results(folder / "metrics.json", scores)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {os_words(error)}; choose another folder") from error


def scores_of(run: Path, evaluators: list[str]) -> dict[str, dict[str, float]]:
    """The latest scores of a run folder; none, where it has no metrics."""
    metrics = run / "metrics.jsonl"
    return latest_scores(read_curves(metrics), evaluators) if metrics.is_file() else {}


def latest_scores(
    curves: Mapping[str, list[tuple[float, float]]], evaluators: list[str]
) -> dict[str, dict[str, float]]:
    """The last point of each evaluator's curves: evaluator -> metric -> value."""
    scores: dict[str, dict[str, float]] = {name: {} for name in evaluators}
    for metric, points in curves.items():
        evaluator, _, rest = metric.partition("/")
        if evaluator in scores and points:
            scores[evaluator][rest] = points[-1][1]
    return {name: values for name, values in scores.items() if values}
