"""`mmssl shards`: make, index, audit and measure WebDataset shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.outputs import file_to_write
from pipelines.progress import progress_bar

app = typer.Typer(
    help="Make, index, audit and measure WebDataset shards.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHARDS = Annotated[list[str], typer.Argument(help="Folders, paths, globs or brace patterns; or URLs with braces.")]
CACHE = Annotated[Path | None, typer.Option(help="Cache of remote shards, as `data.cache.folder`.")]
PIPE = Annotated[bool, typer.Option("--allow-pipe", help="Run `pipe:` commands.")]
JSON = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=file_to_write, help="Write the findings here, as JSON."),
]
MEANINGS = ("image", "audio", "video", "file", "caption", "label", "key")


@app.command()
def pack(
    source: Annotated[
        Path,
        typer.Argument(help="Folder with a folder a class; .csv, .tsv or .parquet; saved Hugging Face data set; .npz."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    template: Annotated[
        list[str] | None,
        typer.Option(help="Caption for samples with a class, with {} for its name; may be given several times."),
    ] = None,
    captions: Annotated[bool, typer.Option(help="Write captions made from class names.")] = True,
    shard_size: Annotated[float, typer.Option(min=0.001, help="Largest size of a shard in MB.")] = 256.0,
    shard_samples: Annotated[int, typer.Option(min=1, help="Largest number of samples in a shard.")] = 10_000,
    max_side: Annotated[
        int | None,
        typer.Option(min=1, help="Shrink larger pictures to this longer side, in pixels, and re-encode them."),
    ] = None,
    shuffle: Annotated[bool, typer.Option(help="Shuffle the samples.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order and of the choice of captions.")] = 0,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=NAME",
            help="Which column of a table is the image, audio, video, file, caption, label or key, as in caption=title.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths in a table start from.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a saved Hugging Face data set.")] = None,
    on_error: Annotated[str, typer.Option(metavar="raise|skip", help="What to do with unusable rows.")] = "raise",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and encode.")] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the shards of another pack run in OUT.")
    ] = False,
) -> None:
    """Pack a data set into shards: deterministic, resumable, media copied byte for byte.

    Examples:

    `mmssl shards pack photos/ shards/train --template 'a photo of a {}'`

    `mmssl shards pack pairs.csv shards/train --column image=photo --column audio=recording --column caption=title`

    `mmssl shards pack cifar10-train.npz shards/cifar10/train`
    """
    from mmssl.core.errors import RecipeError
    from mmssl.curation.pack import PackConfig
    from mmssl.curation.pack import pack as write
    from mmssl.recipe.validate import validate_text
    from mmssl.training.runtime.console import say

    if not captions and template:
        raise RecipeError("--template and --no-captions: templates would have no effect: remove one of the two")
    values = {
        "shard_bytes": int(shard_size * 2**20),
        "shard_samples": shard_samples,
        "templates": (template or None) if captions else [],
        "max_side": max_side,
        "shuffle": seed if shuffle else None,
        "columns": _columns(column or []),
        "split": split,
        "on_error": on_error,
    }
    config = validate_text(PackConfig, json.dumps(values), "command line")
    with progress_bar("packing") as progress:
        manifest = write(source, out, config, root=root, workers=workers, overwrite=overwrite, progress=progress)
    say(
        f"{manifest.samples} samples in {len(manifest.shards)} shards, {sum(manifest.skipped.values())} rows left out; see {out}"
    )


def _columns(items: list[str]) -> dict[str, Any]:
    """`Columns` from the command line; files and captions may be given several times."""
    from mmssl.core.errors import RecipeError, did_you_mean
    from mmssl.data.modalities.usual import file_formats

    several, columns = {"file": "files", "caption": "captions"}, dict[str, Any]()
    others = [kind for kind in file_formats() if kind not in MEANINGS]
    meanings, media = (*MEANINGS, *others), dict[str, Any]()
    for item in items:
        meaning, equals, name = item.partition("=")
        if equals and meaning not in meanings:
            raise RecipeError(
                f"--column: got {item!r}: {meaning!r} is none of {', '.join(meanings)}{did_you_mean(meaning, meanings)}"
            )
        named = media if meaning in others else columns
        found = named.setdefault(several.get(meaning, meaning), [] if meaning in several else name)
        if isinstance(found, list):
            found.append(name)
        if not (meaning and equals and name) or (isinstance(found, str) and found != name):
            raise RecipeError(
                f"--column: got {item!r}, wanted MEANING=NAME, as in caption=title, and each meaning once"
            )
    return {**columns, "media": media}


@app.command()
def index(
    shards: SHARDS,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the index files of remote shards, to upload beside them; default: the cache."),
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
    from mmssl.data.shards.remote import CacheConfig
    from mmssl.data.shards.sidecars import check_sidecars, write_sidecars
    from mmssl.training.runtime.console import say

    remote = CacheConfig(folder=cache).build(allow_pipe)
    with progress_bar("checking" if verify else "indexing") as progress:
        count = (
            check_sidecars(shards, remote, progress)
            if verify
            else write_sidecars(shards, remote, out, progress, force=force)
        )
    say(f"{count} sidecars are right" if verify else f"indexed {count} shards")


@app.command()
def check(
    shards: SHARDS,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Decode at most this number of samples in all, an equal share of each shard."),
    ] = None,
    require: Annotated[list[str] | None, typer.Option(help="Extension that every sample must have.")] = None,
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
    """Audit shards: damage, undecodable or missing members, duplicates, captions. Exit code 3 if something is wrong.

    Example: `mmssl shards check 'shards/train/{000000..000099}.tar' --require jpg --require txt`
    """
    from mmssl.curation.check import check as audit
    from mmssl.data.shards.remote import CacheConfig

    with progress_bar("checking") as progress:
        report = audit(
            shards,
            required=require or None,
            limit=limit,
            workers=workers,
            context_length=context_length,
            threads=threads,
            remote=CacheConfig(folder=cache).build(allow_pipe),
            progress=progress,
        )
    print(report.table())
    if json_file is not None:
        json_file.write_text(report.to_json() + "\n")
    if not report.ok:
        raise typer.Exit(3)


@app.command()
def stats(
    shards: SHARDS,
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

    Examples:

    `mmssl shards stats 'shards/train/{000000..000099}.tar'`

    `mmssl shards stats shards/train --front-end ast`

    `mmssl shards stats shards/train --front-end '{kind: mel, rate: 8000, window: 256, hop: 80, mels: 40}'`
    """
    from dataclasses import asdict

    from mmssl.curation.stats import stats as measure
    from mmssl.data.shards.remote import CacheConfig
    from pipelines.spectrogram_stats import front_end_stats

    remote = CacheConfig(folder=cache).build(allow_pipe)
    if front_end is not None:
        found = front_end_stats(shards, front_end, sample=sample, remote=remote)
        print(found.table())
        if json_file is not None:
            json_file.write_text(json.dumps(asdict(found), indent=1) + "\n")
        return
    with progress_bar("measuring") as progress:
        report = measure(shards, sample=sample, remote=remote, progress=progress)
    print(report.table())
    if json_file is not None:
        json_file.write_text(report.to_json() + "\n")
