"""`mmssl explain`: say why the loss of a run does not fall."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.outputs import local_path


def explain(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", callback=local_path, help="A run folder, of a run that ended or goes on.")
    ],
) -> None:
    """Say why the loss of a run is flat: what its log shows, the usual cause, and what to try.

    It looks for a loss at chance, collapsed features, a temperature at its limit, repeated captions, missing partners, frozen
    random encoders, a learning rate next to nothing, skipped steps, damaged samples, and time spent waiting for data.

    Example: `mmssl explain runs/first`
    """
    from mmssl.reporting.explain import explain_run

    standing, findings = explain_run(run)
    print(f"{run}: {standing}")
    for number, finding in enumerate(findings, 1):
        print(f"\n{number}. {finding.seen}\n   {finding.cause}\n   {finding.remedy}")
    if not findings:
        print("\nnothing wrong seen")


if __name__ == "__main__":
    from pipelines.command import single

    single(explain)
