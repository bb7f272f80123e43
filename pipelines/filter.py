"""`mmssl shards filter`: new shards of the samples that meet all criteria."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.measured import WHICH
from pipelines.options import ARCH, CACHE, JSON, PIPE, SHARDS, TOKENIZER, client_for, from_options
from pipelines.outputs import local_path, write_file
from pipelines.pair_scorer import pair_scorer
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
DISTANCE = Annotated[
    int | None,
    typer.Option(min=0, max=16, help="Bits, of 64, in which hashes of pictures that look alike differ; default: 4."),
]
MIN_SIDE = Annotated[int | None, typer.Option(min=1, help="Shortest side of pictures and videos, in pixels.")]
RUN = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        callback=local_path,
        help="Score the pair of each sample by this run, checkpoint or model, for the three criteria that follow; or by a "
        "folder into which `mmssl embed` wrote these shards.",
    ),
]
PAIR = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="With --run: the modalities compared. Default: those of the shared space, if two."
    ),
]
MIN_SIMILARITY = Annotated[
    float | None,
    typer.Option(min=-1, max=1, help="With --run: least cosine of the pair; of several captions the best."),
]
MIN_PROBABILITY = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="With --run: least probability of a match, by `mmssl evaluate --calibrate`."),
]
KEEP_SHARE = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="With --run: share with the largest cosines, such as 0.3, of the samples that meet all other criteria.",
    ),
]
DEVICE = Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="With --run. Default: auto.")]
BATCH_SIZE = Annotated[int | None, typer.Option(min=1, help="With --run: samples encoded at a time. Default: 256.")]
WORKERS = Annotated[int | None, typer.Option(min=0, help="With --run: processes that decode. Default: 0.")]


def filter_(
    shards: SHARDS,
    out: Annotated[Path, typer.Option(callback=local_path, help="Folder for the new shards.")],
    where: WHERE = None,
    duplicates: DUPLICATES = None,
    distance: DISTANCE = None,
    min_side: MIN_SIDE = None,
    min_words: Annotated[int | None, typer.Option(min=0, help="Words that every caption must have.")] = None,
    max_words: Annotated[int | None, typer.Option(min=0, help="Words that no caption may exceed.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="CLIP tokens that no caption may exceed.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Extension that every sample must have.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Also take the readable samples of damaged shards.")] = False,
    run: RUN = None,
    pair: PAIR = None,
    min_similarity: MIN_SIMILARITY = None,
    min_probability: MIN_PROBABILITY = None,
    keep_share: KEEP_SHARE = None,
    which: WHICH = None,
    device: DEVICE = None,
    batch_size: BATCH_SIZE = None,
    workers: WORKERS = None,
    arch: ARCH = None,
    tokenizer: TOKENIZER = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing: only print the table.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished shards in OUT.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Shards read in parallel.")] = 2,
    cache: CACHE = None,
    allow_pipe: PIPE = False,
    json_file: JSON = None,
) -> None:
    """Write new shards of the good samples: without faults, repeats, small pictures, ...; a ledger names the others.

    Members are copied byte for byte. `left_out.jsonl` in OUT has a line for each sample that is left out: key, shard, reason. With
    --run, `similarities.jsonl` has the score of each sample that meets the other criteria, and --dry-run shows the distribution.

    Examples:

    `mmssl shards filter shards/train --out shards/clean --duplicates exact --min-words 3 --where "json.width >= 200" --dry-run`

    `mmssl shards filter shards/train --out shards/best --run runs/first --keep-share 0.3` (CLIP-score filtering)
    """
    from mmssl.curation.filter import filter_shards
    from mmssl.curation.filter_choice import FilterConfig

    values = {
        "where": where, "duplicates": duplicates, "distance": distance, "min_side": min_side, "min_words": min_words,
        "max_words": max_words, "max_tokens": max_tokens, "required": require or None, "repair": repair,
        "min_similarity": min_similarity, "min_probability": min_probability, "keep_share": keep_share,
    }  # fmt: skip
    of_run: dict[str, Any] = {
        "--pair": pair, "--which": which, "--device": device, "--batch-size": batch_size, "--workers": workers,
        "--arch": arch, "--tokenizer": tokenizer,
    }  # fmt: skip
    config = from_options(FilterConfig, values, {"required": "--require"})
    with progress_bar("examining") as bar, pair_scorer(run, of_run, bar) as scorer:
        report = filter_shards(
            shards,
            out,
            config,
            scorer=scorer,
            overwrite=overwrite,
            dry_run=dry_run,
            threads=threads,
            remote=client_for(shards, cache, allow_pipe),
            progress=bar,
        )
    print(report.table())
    if json_file is not None:
        write_file(json_file, report.to_json() + "\n")
