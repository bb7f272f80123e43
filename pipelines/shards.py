"""`mmssl shards`: make, index, audit, filter and measure WebDataset shards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.filter import filter_
from pipelines.options import CACHE, JSON, PIPE, SHARDS, client_for
from pipelines.outputs import local_path, write_file
from pipelines.pack import pack
from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.curation.check_report import CheckReport
    from mmssl.curation.leakage import LeakReport
    from mmssl.recipe.recipe import Recipe
    from pipelines.check_recipe import RecipeReport

app = typer.Typer(
    help="Make, index, audit, filter and measure WebDataset shards.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHARDS_OR_RECIPE = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS...|RECIPE [KEY.PATH=VALUE]...",
        help="Folders, paths, globs or brace patterns; or URLs with braces. Or a recipe: all of its sources.",
    ),
]

AGAINST = Annotated[
    list[str] | None,
    typer.Option(metavar="SHARDS", help="Only look for the samples of these test shards in the others: leakage."),
]

RUN = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        callback=local_path,
        help="With --against: also compare by the features of this run, checkpoint or model, which finds copies that were cut, "
        "mirrored or recorded anew.",
    ),
]
COSINE = Annotated[
    float, typer.Option(min=-1, max=1, help="With --run: cosine of features from which samples count as near.")
]

app.command()(pack)
app.command("filter")(filter_)


@app.command()
def index(
    shards: SHARDS,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=local_path,
            help="Folder for the index files of remote shards, to upload beside them; default: the cache.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--check", help="Write nothing: compare each sidecar with its shard. Exit code 3 if one is wrong."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option(help="Replace indexes that disagree with their shards: of shards that were written anew.")
    ] = False,
    cache: CACHE = None,
    allow_pipe: PIPE = False,
) -> None:
    """Write the index of each shard beside it, so that runs start at once. Runs build a missing index themselves.

    An index that disagrees with its shard stays, because it may be the shard that is damaged, unless --force says otherwise.
    A remote shard is downloaded once for it; with its index `<url>.index.npz` beside it, later runs skip the download.

    Examples:

    `mmssl shards index 'shards/train/{000000..000099}.tar'`

    `mmssl shards index 'https://host/train/{000000..000099}.tar' --out sidecars`
    """
    from mmssl.data.shards.sidecars import check_sidecars, write_sidecars

    remote = client_for(shards, cache, allow_pipe)
    with progress_bar("checking" if verify else "indexing") as progress:
        count = (
            check_sidecars(shards, remote, progress)
            if verify
            else write_sidecars(shards, remote, out, progress, force=force)
        )
    typer.echo(f"{count} sidecars are right" if verify else f"indexed {count} shards", err=True)


@app.command()
def check(
    shards: SHARDS_OR_RECIPE,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Decode at most this number of samples in all, an equal share of each shard."),
    ] = None,
    needs: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Modalities that every sample must have, as in image,text."),
    ] = None,
    require: Annotated[list[str] | None, typer.Option(help="Extension that every sample must have.")] = None,
    against_manifest: Annotated[
        bool,
        typer.Option("--against-manifest", help="Compare the shards with the manifest beside them: size, SHA-256."),
    ] = False,
    against: AGAINST = None,
    run: RUN = None,
    cosine: COSINE = 0.95,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Check that this number of workers has enough shards.")
    ] = None,
    context_length: Annotated[
        int, typer.Option(min=2, help="Context length, in tokens, at which captions are cut.")
    ] = 77,
    threads: Annotated[int, typer.Option(min=1, help="Shards read in parallel.")] = 2,
    cache: CACHE = None,
    allow_pipe: PIPE = False,
    json_file: JSON = None,
) -> None:
    """Audit shards: damage, undecodable or missing members, duplicates, captions, folders that are not packed to the end.

    Exit code 3 if something is wrong; warnings alone end with 0.

    Of a recipe, everything is reported that its run would refuse, with the settings of its modalities and `data.optional`.

    Examples:

    `mmssl shards check 'shards/train/{000000..000099}.tar' --needs image,text`

    `mmssl shards check image_text/vit_b_32 data.shards='["shards/train"]'`

    `mmssl shards check shards/train --against shards/test --run runs/first` (equal, alike, captions; near by a run's features)
    """
    if against:
        return _leaks(shards, against, run, cosine, cache, allow_pipe, json_file)
    if run is not None:
        raise typer.BadParameter("--run has no effect without --against: add it, or leave --run out")
    from pipelines.check_recipe import check_recipe, check_with_manifests, is_recipe, modality_names, recipe_alone

    with progress_bar("checking") as progress:
        examine = partial(
            check_with_manifests,
            against_manifest,
            limit=limit,
            workers=workers,
            context_length=context_length,
            threads=threads,
            progress=progress,
        )
        report: RecipeReport | CheckReport
        if is_recipe(shards[0]):
            report = check_recipe(recipe_alone(shards, needs, require, cache, allow_pipe), examine)
        else:
            remote = client_for(shards, cache, allow_pipe)
            report = examine(shards, needs=modality_names(needs), required=require or None, remote=remote)
    _show(report, json_file)


def _show(report: RecipeReport | CheckReport | LeakReport, json_file: Path | None) -> None:
    """Print a report, write it, and exit with 3 if something is wrong."""
    print(report.table())
    if json_file is not None:
        write_file(json_file, report.to_json() + "\n")
    if not report.ok:
        raise typer.Exit(3)


def _leaks(
    shards: list[str],
    against: list[str],
    run: Path | None,
    cosine: float,
    cache: Path | None,
    allow_pipe: bool,
    json_file: Path | None,
) -> None:
    from mmssl.curation.leakage import find_leaks

    remote = client_for(shards + against, cache, allow_pipe)
    model = None
    if run is not None:  # a mistake in it shows before the long comparison
        import torch

        from mmssl.recipe.load import load

        model = load(run, device="cuda" if torch.cuda.is_available() else "cpu")
    with progress_bar("comparing") as progress:
        report = find_leaks(shards, against, remote=remote, progress=progress)
    if model is not None:
        from mmssl.evaluation.near_samples import near_samples

        with progress_bar("embedding") as progress:
            found = near_samples(model.embedding, model.modalities, shards, against, remote=remote, progress=progress)
        for name, nearby in found.items():
            near = (nearby.cosines >= cosine).nonzero().flatten().tolist()
            training, within = nearby.quantiles(0.99)
            note = (
                f"{name}: near is a cosine from {cosine:g}; 99 % of the test samples lie below {training:.3f} to their nearest "
                f"training sample, and below {within:.3f} to another test sample, which a leak should exceed"
            )
            report.add_near(name, ((nearby.test[i], nearby.train[i]) for i in near), note)
    _show(report, json_file)


@app.command()
def stats(
    shards: SHARDS_OR_RECIPE,
    sample: Annotated[int, typer.Option(min=1, help="Number of samples to read and decode.")] = 2000,
    front_end: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|{...}",
            help="Measure mean and std of this spectrogram front-end instead: ast, mel, {kind: ...}",
        ),
    ] = None,
    cache: CACHE = None,
    allow_pipe: PIPE = False,
    json_file: JSON = None,
) -> None:
    """Measure shards: sizes, statistics for normalisation, captions, classes, sounds, videos, speed of reading.

    Of a recipe, each source is measured with the settings of its modalities, such as axes and rate of arrays and series.

    Examples:

    `mmssl shards stats 'shards/train/{000000..000099}.tar'`

    `mmssl shards stats series/mae_small data.shards='["shards/train"]'`

    `mmssl shards stats shards/train --front-end ast`

    `mmssl shards stats shards/train --front-end '{kind: mel, rate: 8000, window: 256, hop: 80, mels: 40}'`
    """
    from dataclasses import asdict

    from mmssl.curation.stats import measure_shards as measure
    from pipelines.check_recipe import is_recipe, recipe_alone
    from pipelines.spectrogram_stats import front_end_stats

    if is_recipe(shards[0]):
        if front_end is not None:
            raise typer.BadParameter("--front-end has no effect beside a recipe: name its shards in place of it")
        return _stats_of_recipe(recipe_alone(shards, None, None, cache, allow_pipe), sample, json_file)
    remote = client_for(shards, cache, allow_pipe)
    if front_end is not None:
        found = front_end_stats(shards, front_end, sample=sample, remote=remote)
        print(found.table())
        if json_file is not None:
            write_file(json_file, json.dumps(asdict(found), indent=1) + "\n")
        return
    with progress_bar("measuring") as progress:
        report = measure(shards, sample=sample, remote=remote, progress=progress)
    print(report.table())
    if json_file is not None:
        write_file(json_file, report.to_json() + "\n")


def _stats_of_recipe(recipe: Recipe, sample: int, json_file: Path | None) -> None:
    """Measure each source of a recipe, and print and write a report of each."""
    from mmssl.curation.stats import measure_shards as measure
    from pipelines.check_recipe import sources_of

    modalities, remote = recipe.build_modalities(), recipe.data.cache.build(recipe.data.allow_pipe)
    reports = {}
    for name, shards in sources_of(recipe).items():
        with progress_bar(f"measuring {name}") as progress:
            reports[name] = measure(shards, modalities, sample=sample, remote=remote, progress=progress)
    print("\n\n".join(f"source {name}\n{report.table()}" for name, report in reports.items()))
    if json_file is not None:
        found = {name: json.loads(report.to_json()) for name, report in reports.items()}
        write_file(json_file, json.dumps({"sources": found}, indent=1) + "\n")
