"""`mmssl report`: the HTML report of a run, with what `mmssl evaluate` measured since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.outputs import file_to_write, folder_to_write, local_path

if TYPE_CHECKING:
    from collections.abc import Mapping


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=local_path, help="A run folder.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Folder or JSON file of `mmssl evaluate RUN --out`: relations, groups, robustness, calibration, galleries.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="RUN2|FOLDER", callback=local_path, help="Another run, or results of it, to show beside."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", callback=file_to_write, help="Default: report.html in the run folder."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=folder_to_write,
            help="Also write each figure as PNG, and metrics.json, into this folder.",
        ),
    ] = None,
) -> None:
    """Write the report of a run anew: one HTML file that needs no network, readable on a laptop, a phone, and in the dark.

    Training writes it at its end; this verb adds what was measured since.

    Examples:

    `mmssl report runs/first`

    `mmssl report runs/first --results results --compare runs/second --figures figures`
    """
    from mmssl.recipe.recipe import saved_recipe
    from mmssl.reporting.measures import comparison, measured_elsewhere, read_records, report_parts
    from mmssl.reporting.run_report import measured_evaluators, report_run, scores_of
    from mmssl.training.checkpoints.read import resolve
    from mmssl.training.runtime.console import say
    from pipelines.data_statistics import data_statistics

    if not (run / "recipe.yaml").is_file():
        raise typer.BadParameter(f"got {str(run)!r}, wanted a run folder, which holds recipe.yaml")
    recipe = saved_recipe(resolve(run, "best")).model_copy(update={"output": run.absolute().parent, "name": run.name})
    records: dict[str, dict[str, Any]] = {}
    for folder in results or []:
        records |= read_records(folder)
    scores: dict[str, Mapping[str, Any]] = {
        **scores_of(run, list(recipe.evaluators)),
        **{task: record["scores"] for task, record in records.items()},
    }
    parts = [*measured_elsewhere(records, run), *report_parts(records)]
    if compare is not None:
        if (compare / "recipe.yaml").is_file():
            others = scores_of(compare, list(saved_recipe(resolve(compare, "best")).evaluators))
        else:
            others = {task: record["scores"] for task, record in read_records(compare).items()}
        parts.append(comparison(run.name, scores, compare.name, others))
    measured = measured_evaluators(records)
    parts.append(data_statistics(recipe, measured))
    written = report_run(recipe, out, scores, parts=parts, figures=figures, measured=measured)
    say(f"report in {written}" + (f", figures and metrics.json in {figures}" if figures is not None else ""))


if __name__ == "__main__":
    from pipelines.command import single

    single(report)
