"""The `mmssl` command: all verbs. Exit codes: see `pipelines/command.py`."""

from __future__ import annotations

import sys
from functools import cache

import typer

from pipelines.command import guarded


@cache
def full() -> typer.Typer:
    """The application with all its verbs."""
    from pipelines import (
        average,
        bench,
        compare,
        doctor,
        embed,
        evaluate,
        explain,
        export,
        import_model,
        index,
        pretrain,
        quickstart,
        recipes,
        report,
        runs,
        search,
        serve,
        shards,
    )

    app = typer.Typer(
        name="mmssl",
        help="Pretrain multimodal contrastive models on WebDataset shards, and evaluate them honestly.",
        epilog="Start here: mmssl quickstart",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("quickstart")(quickstart.quickstart)
    app.command("pretrain")(pretrain.pretrain)
    app.command("runs")(runs.runs)
    app.command("explain")(explain.explain)
    app.command("evaluate")(evaluate.evaluate)
    app.command("report")(report.report)
    app.command("average")(average.average)
    app.command("compare")(compare.compare)
    app.command("embed")(embed.embed)
    app.command("index")(index.index)
    app.command("search")(search.search)
    app.command("serve")(serve.serve)
    app.command("import")(import_model.import_model)
    app.command("export")(export.export)
    app.add_typer(recipes.app, name="recipes")
    app.add_typer(shards.app, name="shards")
    app.add_typer(bench.app, name="bench")
    app.command("doctor")(doctor.doctor)
    return app


def main() -> None:
    """Entry point of the `mmssl` script."""
    sys.exit(guarded(full()))


if __name__ == "__main__":
    main()
