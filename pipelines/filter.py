"""`mmssl shards filter`: new shards of the samples that meet all criteria."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import CACHE, PIPE, SHARDS, client_for
from pipelines.outputs import local_path
from pipelines.progress import progress_bar

WHERE = Annotated[
    str | None,
    typer.Option(help="Conditions on the sample's .json, as in \"json.width >= 200 and json.license == 'CC BY'\"."),
]
DUPLICATES = Annotated[
    str | None,
    typer.Option(
        metavar="exact|perceptual",
        help="Leave out samples whose media files equal an earlier one's; or also whose picture looks like an earlier one.",
    ),
]


def filter_(
    shards: SHARDS,
    out: Annotated[Path, typer.Option(callback=local_path, help="Folder for the new shards.")],
    where: WHERE = None,
    duplicates: DUPLICATES = None,
    distance: Annotated[
        int | None,
        typer.Option(
            min=0, max=16, help="Bits, of 64, in which hashes of pictures that look alike differ; default: 4."
        ),
    ] = None,
    min_side: Annotated[
        int | None, typer.Option(min=1, help="Shortest side of pictures and videos, in pixels.")
    ] = None,
    min_words: Annotated[int | None, typer.Option(min=0, help="Words that every caption must have.")] = None,
    max_words: Annotated[int | None, typer.Option(min=0, help="Words that no caption may exceed.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="CLIP tokens that no caption may exceed.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Extension that every sample must have.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Also take the readable samples of damaged shards.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing: only print the table.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished shards in OUT.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Shards read in parallel.")] = 2,
    cache: CACHE = None,
    allow_pipe: PIPE = False,
) -> None:
    """Write new shards of the good samples: without faults, repeats, small pictures, ...; a ledger names the others.

    Members are copied byte for byte. `left_out.jsonl` in OUT has a line for each sample that is left out: key, shard, reason.

    Examples:

    `mmssl shards filter shards/train --out shards/clean --duplicates exact --min-side 200 --min-words 3`

    `mmssl shards filter shards/train --out shards/clean --where "json.width >= 200" --repair --dry-run`
    """
    from mmssl.curation.filter import filter_shards
    from mmssl.curation.filter_choice import FilterConfig
    from mmssl.recipe.validate import validate_text

    values = {
        "where": where,
        "duplicates": duplicates,
        "distance": distance,
        "min_side": min_side,
        "min_words": min_words,
        "max_words": max_words,
        "max_tokens": max_tokens,
        "required": require or None,
        "repair": repair,
    }
    config = validate_text(FilterConfig, json.dumps(values), "command line")
    with progress_bar("examining") as progress:
        report = filter_shards(
            shards,
            out,
            config,
            overwrite=overwrite,
            dry_run=dry_run,
            threads=threads,
            remote=client_for(shards, cache, allow_pipe),
            progress=progress,
        )
    print(report.table())
