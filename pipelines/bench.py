"""`mmssl bench`: how fast parts of a run are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.outputs import file_to_write
from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.core.batch import Needs
    from mmssl.data.modality import Modality
    from mmssl.data.stream.config import DataConfig

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
            metavar="RECIPE [KEY.PATH=VALUE]... | SHARDS...", help="A recipe (.yaml) with changes to it, or shards."
        ),
    ],
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; default: the recipe's, or 2.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a batch; default: the recipe's, or 64.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of pictures in pixels, for SHARDS only.")] = 224,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Duration of the stages, and again of the whole loader.")
    ] = 5.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", callback=file_to_write, help="Write the figures here, as JSON."),
    ] = None,
) -> None:
    """Measure the data loader on this machine, stage by stage: reading, decoding, views, collating, transfer.

    Examples:

    `mmssl bench data 'shards/train/{000000..000099}.tar' --workers 8`

    `mmssl bench data my_recipe.yaml data.workers=8`
    """
    from mmssl.curation.speed import measure

    settings, modalities, needs, usual_batch = _recipe(targets) or _shards(targets, size)
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    with progress_bar("measuring") as progress:
        report = measure(
            settings,
            modalities,
            needs,
            batch_size=batch_size or usual_batch,
            seconds=seconds,
            progress=progress,
        )
    print(report.table())
    if json_file is not None:
        json_file.write_text(report.to_json() + "\n")


Parts = tuple["DataConfig", "Mapping[str, Modality]", "Needs", int]


def _recipe(targets: list[str]) -> Parts | None:
    """Data, modalities, needs and batch size of a recipe; None for shards."""
    from mmssl.core.plan import Plan
    from mmssl.recipe.shipped import find_recipe

    first = Path(targets[0])
    if first.suffix == ".tar" or first.is_dir() or any(mark in targets[0] for mark in "{*"):
        return None
    recipe = find_recipe(targets[0], targets[1:])
    modalities = recipe.build_modalities()
    return (
        recipe.data,
        modalities,
        recipe.build_learner(modalities, Plan.unknown()).objective.needs(),
        recipe.batch_size,
    )


def _shards(targets: list[str], size: int) -> Parts:
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
    return data, modalities, needs, 64
