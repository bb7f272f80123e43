"""`mmssl runs`: a table of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Run folders, or folders of them.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A figure to show, as in metrics.jsonl; default: loss, first score of each evaluator."
        ),
    ] = None,
) -> None:
    """Show runs in a table: how far they are, their figures, and the keys in which their recipes differ.

    Examples:

    `mmssl runs`

    `mmssl runs runs/first runs/second --metric zero_shot/acc1`
    """
    from mmssl.reporting.runs import read_run, run_folders, runs_table

    print(runs_table([read_run(folder) for folder in run_folders(folders or [Path("runs")])], metric or ()))


if __name__ == "__main__":
    from pipelines.command import single

    single(runs)
