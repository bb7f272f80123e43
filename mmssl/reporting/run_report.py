"""Write the HTML report of a finished run, with scores, curves and gallery."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmssl.core.errors import DataError, MmsslError, for_people, os_words
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.retrieval import Retrieval, RetrievalConfig
from mmssl.recipe.load import load
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.suite import Suite, evaluation_modalities, read_as
from mmssl.reporting.environment import environment
from mmssl.reporting.figures import Chart, chart_png, charts
from mmssl.reporting.gallery import Gallery, Similarity, showcase
from mmssl.reporting.measures import Grid, ReportPart
from mmssl.reporting.report import read_curves, read_warnings, write_report, write_results

log = logging.getLogger(__name__)

MOST_PAIRS = 3
"""Pairs of modalities whose galleries a report has."""


def report_run(
    recipe: Recipe,
    path: Path | None = None,
    results: Mapping[str, Any] | None = None,
    model: Model | None = None,
    failures: Mapping[str, MmsslError] | None = None,
    parts: Sequence[ReportPart] = (),
    figures: Path | None = None,
    measured: Mapping[str, EvaluatorConfig] | None = None,
) -> Path:
    """Write the report of a finished run.

    Args:
        recipe: the run's recipe. Galleries are of its retrieval evaluators: of each pair of modalities the first that can be
            read, those of the end of the run before those that run during training.
        path: the file; default: report.html in the run folder.
        results: metric table; default: the latest scores in the run's metrics.
        model: the trained model; default: loaded from the run folder.
        failures: name of an evaluator -> error that stands in the metric table in place of scores.
        parts: further tables and figures, see `measures`.
        figures: folder for each figure as PNG, and the scores as metrics.json; None: they are not written.
        measured: further evaluators for galleries, before those of the recipe: see `measured_evaluators`.
    """
    path = path or recipe.folder / "report.html"
    failures = failures or {}
    metrics = recipe.folder / "metrics.jsonl"
    curves = read_curves(metrics)
    # Those of the end of the run before those that run during training.
    last = sorted(recipe.evaluators.items(), key=lambda one: one[1].every is not None)
    own = {name: config for name, config in last if name not in failures}
    shown, missing = _showcases(recipe, {**(measured or {}), **own}, model)
    if shown:
        note = "Items of the retrieval gallery. Modalities that lie apart share a space, but not a place in it."
        parts = [ReportPart("Embedding map", note, charts=[embeddings for _, _, embeddings in shown]), *parts]
    if missing:
        parts = [
            ReportPart("Without a gallery", "Their samples cannot be shown.", [Grid("", ("", ""), missing)]),
            *parts,
        ]
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
        galleries=[gallery for galleries, _, _ in shown for gallery in galleries],
        similarities=[similarity for _, similarity, _ in shown],
        parts=parts,
        environment=environment(),
        recipe_text=recipe.to_yaml(),
    )
    return path


def _showcases(
    recipe: Recipe, evaluators: Mapping[str, EvaluatorConfig], model: Model | None
) -> tuple[list[tuple[list[Gallery], Similarity, Chart]], list[tuple[str, str]]]:
    """What `showcase` shows of each pair of modalities; and the evaluators of pairs without it, each with the reason."""
    pairs: dict[frozenset[str], dict[str, RetrievalConfig]] = {}
    for name, config in evaluators.items():
        if isinstance(config, RetrievalConfig):
            pairs.setdefault(frozenset(config.pair), {})[name] = config
    chosen = [*pairs.values()][:MOST_PAIRS]
    if not chosen:
        return [], []
    model = model or load(recipe.folder)
    modalities = evaluation_modalities(recipe.build_modalities())
    room: dict[str, Any] = {"share": 1 / len(chosen), "count": 4 if len(chosen) == 1 else 2}
    shown, missing = [], []
    for of_pair in chosen:
        why: list[tuple[str, str]] = []
        for name, config in of_pair.items():
            try:
                with read_as(config, recipe.data).build(modalities) as evaluator:
                    assert isinstance(evaluator, Retrieval)
                    shown.append(showcase(evaluator, model.embedding, prefix=f"{name}: ", **room))
                break
            except Exception as caught:  # of decoders and modalities of other packages, too
                error = for_people(caught)
                log.warning("no gallery of %s: %s", name, error, exc_info=not isinstance(caught, MmsslError))
                why.append((name, str(error)))
        else:
            missing += why
    return shown, missing


def measured_evaluators(records: Mapping[str, Mapping[str, Any]]) -> dict[str, EvaluatorConfig]:
    """Task -> the evaluator whose settings its record holds, of those that this version knows; see `measures.read_records`."""
    found: dict[str, EvaluatorConfig] = {}
    for task, record in records.items():
        try:
            found |= Suite.model_validate_json(json.dumps({"evaluators": {task: record.get("evaluator")}})).evaluators
        except ValidationError:
            log.warning("no gallery or statistics of %s: this version cannot read its settings", task)
    return found


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
    return latest_scores(read_curves(run / "metrics.jsonl"), evaluators)


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
