"""`mmssl compare`: two checkpoints on the same test sets, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.measured import (
    BATCH_SIZE,
    DATA,
    DEVICE,
    ON_ERROR,
    WHICH,
    WORKERS,
    Wanted,
    model_of,
    require_there,
    run_evaluators,
    suite_and_overrides,
    suite_configs,
    weights_origin,
    with_settings,
)
from pipelines.outputs import folder_to_write

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.core.evaluator import Table
    from mmssl.evaluation.comparison import Difference, PairedRow
    from mmssl.recipe.model import Model
    from mmssl.reporting.results import TaskRecords

CHECKPOINT = Annotated[Path, typer.Argument(help="A run or checkpoint folder; or a recipe, for its untrained model.")]
MORE = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUITE|KEY.PATH=VALUE", help="As of `mmssl evaluate`. Default: the evaluators of the first."
    ),
]
OUT = Annotated[
    Path | None,
    typer.Option(
        callback=folder_to_write, help="Folder for compare.md, .csv, .tex, .json, classes.csv, and queries.csv (rows)."
    ),
]
UNPAIRED = (
    "no paired difference, because its scores are of the whole set and not of rows of samples; compare.json has both"
)
Tables = dict[str, Mapping[str, "Table"]]


def compare(
    first: CHECKPOINT,
    second: CHECKPOINT,
    more: MORE = None,
    which: WHICH = None,
    batch_size: BATCH_SIZE = None,
    workers: WORKERS = None,
    on_error: ON_ERROR = None,
    data: DATA = Path("."),
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap draws of samples.")] = 2000,
    device: DEVICE = "auto",
    out: OUT = None,
) -> None:
    """Compare two trained models on the same samples: differences with paired 95 % intervals, McNemar's test, by class, by sample.

    Both are measured on every sample, and the intervals are those of the difference, which is much better known than either score.

    Examples:

    `mmssl compare runs/first runs/second image_text --data /data/wds --out comparison`

    `mmssl compare image_text/vit_b_32 runs/first suite.yaml` (what training has brought)
    """
    from mmssl.core.distributed import is_main
    from mmssl.core.evaluator import evaluation_error
    from mmssl.evaluation.comparison import compare_tables, paired_rows, pairings
    from mmssl.reporting.results import TaskRecords
    from mmssl.training.runtime.console import say
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")))
    try:
        require_there(second)  # before the first one is measured
        suite, overrides = suite_and_overrides(more or [])
        tables: list[Tables] = []
        records: list[TaskRecords] = []
        failures: dict[str, MmsslError] = {}
        wanted: dict[str, Wanted] | None = None
        for path in (first, second):
            model = model_of(path, which, launch, None, overrides)
            if suite is not None:
                wanted = suite_configs(suite, data, model)
            elif wanted is None:
                wanted = dict(model.recipe.evaluators)
            if not wanted:
                raise typer.BadParameter(f"nothing to compare: {path} has no evaluators; give a suite")
            say(f"{path}:")
            records.append(TaskRecords(weights_origin(model), model.digest()))
            found, errors = _tables(model, with_settings(wanted, batch_size, workers, on_error), records[-1])
            tables.append(found)
            failures |= {f"{name} of {path}": error for name, error in errors.items()}
        both = {task: (tables[0][task], tables[1][task]) for task in tables[0] if task in tables[1]}
        rows = [row for task, pair in both.items() for row in compare_tables(task, *pair, resamples=resamples)]
        _show([row for row in rows if not row.group], [one.checkpoint for one in records])
        unpaired = [task for task, pair in both.items() if not pairings(task, *pair)]
        for task in unpaired:
            say(f"{task}: {UNPAIRED}")
        if is_main() and out is not None:
            queries = [row for task, pair in both.items() for row in paired_rows(task, *pair)]
            _write(out, rows, queries, records, dict.fromkeys(unpaired, UNPAIRED), resamples)
            say(f"comparison in {out}")
    finally:
        launch.close()
    if failures:
        raise evaluation_error(failures)


def _tables(model: Model, configs: Mapping[str, Wanted], records: TaskRecords) -> tuple[Tables, dict[str, MmsslError]]:
    """The tables of each evaluator, and the errors of those that failed; what is measured goes into the records."""
    from mmssl.core.errors import MmsslError

    tables: Tables = {}
    failures: dict[str, MmsslError] = {}
    for name, evaluator, scores in run_evaluators(model, configs, records):
        if isinstance(scores, MmsslError):
            failures[name] = scores
        elif evaluator is not None:
            tables[name] = evaluator.tables
    return tables, failures


def _show(rows: list[Difference], origins: list[str]) -> None:
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as Shown

    from mmssl.core.distributed import is_main

    names = (Column(name, overflow="fold") for name in ("task", "metric"))  # whole, on several lines where need be
    table = Shown(*names, "first", "second", "difference (95 %)", "McNemar p", "n")
    table.title, table.title_justify = f"first: {origins[0]}\nsecond: {origins[1]}", "left"
    for row in rows:
        difference = f"{row.difference:+.4f} ({row.ci95_low:+.4f} to {row.ci95_high:+.4f})"
        p = "" if row.mcnemar_p is None else f"{row.mcnemar_p:.3g}"
        table.add_row(row.task, row.metric, f"{row.first:.4f}", f"{row.second:.4f}", difference, p, f"{row.n:,}")
    if is_main():
        Console(stderr=True).print(table)


def _write(
    folder: Path,
    rows: list[Difference],
    queries: list[PairedRow],
    records: list[TaskRecords],
    unpaired: Mapping[str, str],
    resamples: int,
) -> None:
    from mmssl.core.errors import DataError, os_words
    from mmssl.reporting.report import write_results, write_text_atomically
    from mmssl.reporting.summary import to_csv, to_latex, to_markdown

    whole, classes = [row for row in rows if not row.group], [row for row in rows if row.group]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("md", to_markdown(whole)), ("csv", to_csv(whole)), ("tex", to_latex(whole))):
            write_text_atomically(folder / f"compare.{suffix}", text)
        write_text_atomically(folder / "classes.csv", to_csv(classes))
        write_text_atomically(folder / "queries.csv", to_csv(queries))
        results = {
            "first": records[0].checkpoint,
            "second": records[1].checkpoint,
            "resamples": resamples,
            "differences": [asdict(row) for row in rows],
            "unpaired": unpaired,
            "records": {name: one.records for name, one in zip(("first", "second"), records, strict=True)},
        }
        write_results(folder / "compare.json", results)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {os_words(error)}; choose another --out") from error


if __name__ == "__main__":
    from pipelines.command import single

    single(compare)
