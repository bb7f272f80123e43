"""`mmssl bench`: how fast parts of a run are on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.core.batch import Needs
    from mmssl.data.index import ShardIndex
    from mmssl.data.modality import Modality
    from mmssl.data.workers import Workers

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
    size: Annotated[int, typer.Option(min=8, help="Side of pictures in pixels, where shards are given.")] = 224,
    seconds: Annotated[float, typer.Option(min=0.1, help="For the stages, and again for the whole loader.")] = 5.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, as JSON.")
    ] = None,
) -> None:
    """What the loader alone delivers here, stage by stage: reading, decoding, views, collating, handing over.

    Examples:

    `mmssl bench data 'shards/train/{000000..000099}.tar' --workers 8`

    `mmssl bench data my_recipe.yaml data.workers=8`
    """
    from mmssl.data.speed import measure

    index, modalities, needs, usual_workers, usual_batch = _recipe(targets) or _shards(targets, size)
    with progress_bar("measuring") as progress:
        report = measure(
            index,
            modalities,
            needs,
            batch_size=min(batch_size or usual_batch, len(index)),
            workers=usual_workers if workers is None else replace(usual_workers, count=workers),
            seconds=seconds,
            progress=progress,
        )
    print(report.table())
    if json_file is not None:
        json_file.write_text(report.to_json() + "\n")


Parts = tuple["ShardIndex", "dict[str, Modality]", "Needs", "Workers", int]


def _recipe(targets: list[str]) -> Parts | None:
    """Index, modalities, needs, workers and batch size of a recipe; None if the targets are shards."""
    from mmssl.data.index import ShardIndex
    from mmssl.data.workers import Workers
    from mmssl.recipe.run_folder import find_recipe

    first = Path(targets[0])
    if first.suffix == ".tar" or first.is_dir() or any(mark in targets[0] for mark in "{*"):
        return None
    recipe = find_recipe(targets[0], targets[1:])
    modalities = recipe.build_modalities()
    needs = recipe.build_learner(modalities).objective.needs()
    data = recipe.data
    named = data.shards or [shard for source in (data.sources or {}).values() for shard in source.shards]
    index = ShardIndex.open(named, source="train", remote=data.cache.build(data.allow_pipe))
    workers = Workers(data.workers, data.prefetch, data.timeout, data.start_method)
    return index, modalities, needs, workers, recipe.batch_size


def _shards(targets: list[str], size: int) -> Parts:
    """The same for plain shards: pictures, captions and labels, as far as the shards have them."""
    from mmssl.core.errors import DataError
    from mmssl.data.image import ImageConfig
    from mmssl.data.index import ShardIndex
    from mmssl.data.label import LabelConfig
    from mmssl.data.text import TextConfig
    from mmssl.data.workers import Workers

    index = ShardIndex.open(targets)
    known: dict[str, Modality] = {
        "image": ImageConfig(size=size).build("image"),
        "text": TextConfig(captions="lines").build("text"),
        "label": LabelConfig().build("label"),
    }
    kinds = {"image": "crop", "text": "tokens", "label": "value"}
    has = {name for name, _, _ in index.members(0)}
    modalities = {name: modality for name, modality in known.items() if has & set(modality.extensions)}
    if not modalities:
        raise DataError(f"the first sample has {sorted(has)}, and none of it is read without a recipe: name a recipe")
    return index, modalities, {name: {kinds[name]: 1} for name in modalities}, Workers(2), 64
