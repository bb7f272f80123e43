"""`mmssl bench`: how fast parts of a run are on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.outputs import file_to_write, write_file
from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.core.batch import Needs
    from mmssl.data.modality import Modality
    from mmssl.data.stream.config import DataConfig
    from mmssl.recipe.recipe import Recipe
    from mmssl.training.headspace import Headspace

app = typer.Typer(
    help="Measure how fast parts of a run are on this machine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def bench() -> None:
    """Measure how fast parts of a run are on this machine."""


@app.command()
def data(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY.PATH=VALUE]... | SHARDS...",
            help="A recipe (.yaml, or a run folder) with changes to it, or shards.",
        ),
    ],
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; default: the recipe's, or 2.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a batch; default: the recipe's, or 64.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of pictures in pixels, for SHARDS only.")] = 224,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Duration of each measurement: stages, loader, and steps with two loaders.")
    ] = 5.0,
    train: Annotated[
        bool,
        typer.Option(help="With a RECIPE: train for a moment too, to compare its loader with a perfect one."),
    ] = True,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", callback=file_to_write, help="Write the figures here, as JSON."),
    ] = None,
) -> None:
    """Measure the data loader on this machine, stage by stage, and how much faster a recipe would train with a perfect one.

    Examples:

    `mmssl bench data 'shards/train/{000000..000099}.tar' --workers 8`

    `mmssl bench data my_recipe.yaml data.workers=8`
    """
    from mmssl.curation.check_report import aligned_lines
    from mmssl.curation.speed import measure_loader

    recipe = _recipe(targets, workers, batch_size)
    if recipe is not None:
        settings, modalities, needs, batch_size = _parts(recipe)
    else:
        settings, modalities, needs = _shards(targets, size)
        settings = settings.model_copy(update={} if workers is None else {"workers": workers})
    with progress_bar("measuring the loader") as progress:
        report = measure_loader(
            settings,
            modalities,
            needs,
            batch_size=batch_size or 64,
            seconds=seconds,
            progress=progress,
        )
    print(report.table())
    figures = asdict(report)
    if recipe is not None and train:
        headspace = _headspace(recipe, seconds)
        print("\n".join(aligned_lines(headspace.rows(max(report.stages, key=report.stages.__getitem__)))))
        figures["headspace"] = {**asdict(headspace), "hours": headspace.hours, "gain_hours": headspace.gain_hours}
    if json_file is not None:
        write_file(json_file, json.dumps(figures, indent=1) + "\n")


def _recipe(targets: list[str], workers: int | None, batch_size: int | None) -> Recipe | None:
    """The recipe with the changes of the command line; None for shards."""
    from mmssl.core.errors import RecipeError
    from mmssl.recipe.shipped import find_recipe
    from pipelines.check_recipe import is_recipe

    inside = Path(targets[0]) / "recipe.yaml"
    if inside.is_file():  # of a run folder
        targets = [str(inside), *targets[1:]]
    if not is_recipe(targets[0]):
        change = next((one for one in targets if "=" in one and not Path(one).exists()), None)
        if change is not None:
            raise RecipeError(
                f"got {change!r} beside shards, wanted a recipe to change: name one, or use --workers, --batch-size, --size"
            )
        return None
    changes = {"data.workers": workers, "batch_size": batch_size}
    options = [f"{key}={value}" for key, value in changes.items() if value is not None]
    return find_recipe(targets[0], [*targets[1:], *options])


def _parts(recipe: Recipe) -> tuple[DataConfig, Mapping[str, Modality], Needs, int]:
    """Data, modalities, needs and batch size of a recipe."""
    from mmssl.core.plan import Plan

    modalities = recipe.build_modalities()
    needs = recipe.build_learner(modalities, Plan.unknown()).objective.needs()
    return recipe.data, modalities, needs, recipe.batch_size


def _headspace(recipe: Recipe, seconds: float) -> Headspace:
    """Steps with the recipe's loader and with a perfect one; nothing is written."""
    from mmssl.training.headspace import measure_headspace

    data = recipe.data.model_copy(update={"on_error": "substitute", "max_failures": 1.0, "audit": None})
    launch = recipe.training.launch()
    try:
        run = recipe.model_copy(update={"data": data}).build(launch)
        ahead = data.workers * data.prefetch
        try:
            with progress_bar("measuring steps") as progress:
                return measure_headspace(
                    run, recipe.batch_size, ahead, seconds, lambda share: progress(round(100 * share), 100)
                )
        finally:
            run.state.stream.close()
    finally:
        launch.close()


def _shards(targets: list[str], size: int) -> tuple[DataConfig, Mapping[str, Modality], Needs]:
    """The same for plain shards: all installed modalities that the shards have."""
    from mmssl.core.errors import DataError
    from mmssl.data.modalities.usual import own_extensions, usual_modalities
    from mmssl.data.stream.config import DataConfig

    data = DataConfig(shards=tuple(targets))
    (source,) = data.open()
    has = {name for name, _, _ in source.index.members(0)}
    known = usual_modalities(size=size)
    modalities = {name: modality for name, modality in known.items() if has & set(own_extensions(modality))}
    if not modalities:
        raise DataError(
            f"the first sample has {sorted(has)}, and no installed modality reads it without a recipe: give a recipe"
        )
    needs = {name: {next(iter(modality.views)): 1} for name, modality in modalities.items()}
    return data, modalities, needs
