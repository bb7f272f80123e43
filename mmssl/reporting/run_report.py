"""Write the HTML report of a finished run, with scores, curves and gallery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl.core.errors import MmsslError
from mmssl.evaluation.retrieval import Retrieval
from mmssl.recipe.load import load
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe
from mmssl.reporting.environment import environment
from mmssl.reporting.gallery import Gallery, Similarity, showcase
from mmssl.reporting.report import read_curves, read_warnings, write_report


def report_run(
    recipe: Recipe,
    path: Path | None = None,
    results: Mapping[str, Any] | None = None,
    model: Model | None = None,
    failures: Mapping[str, MmsslError] | None = None,
) -> Path:
    """Write the report of a finished run.

    Args:
        recipe: the run's recipe; its first successful retrieval evaluator fills the gallery.
        path: the file; default: report.html in the run folder.
        results: metric table; default: the latest scores in the run's metrics.
        model: the trained model; default: loaded from the run folder.
        failures: name of an evaluator -> error that stands in the metric table in place of scores.
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
            galleries, similarity = showcase(retrieval, (model or load(recipe.folder)).embedding)
    write_report(
        path,
        title=recipe.name,
        curves=curves,
        warnings=read_warnings(metrics),
        results={
            **(results if results is not None else latest_scores(curves, list(recipe.evaluators))),
            **{name: {"error": str(error)} for name, error in failures.items()},
        },
        galleries=galleries,
        similarity=similarity,
        environment=environment(),
        recipe_text=recipe.to_yaml(),
    )
    return path


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
