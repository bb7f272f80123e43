"""`mmssl shards pack`: a data set of files becomes shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import from_options
from pipelines.outputs import local_path
from pipelines.progress import progress_bar

PACK_OPTIONS = {
    "shard_bytes": "--shard-size", "templates": "--template", "shuffle": "--seed", "columns": "--column",
    "class_names": "--classnames",
}  # fmt: skip
"""Settings of `PackConfig` -> options of other names."""
MEANINGS = ("image", "audio", "video", "file", "caption", "label", "class", "labels", "key")
FORMATS = (
    "coco, karpathy, flickr, audiocaps, clotho, esc50, fsd50k, audioset, vggsound, kinetics, kinetics_sounds, msrvtt, img2dataset, "
    "hugging_face, npz, parquet, csv, folder"
)
SOURCE = Annotated[
    Path,
    typer.Argument(callback=local_path, help="File or folder of one of the formats of --format."),
]
OUT = Annotated[Path, typer.Argument(callback=local_path, help="Folder for the shards.")]
FORMAT = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help=f"Format of SOURCE; default: by its contents. One of: {FORMATS}."),
]
CLASSNAMES = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=local_path,
        help="Names of the classes by number: one a line, or JSON. Default: what SOURCE has.",
    ),
]
DELIMITER = Annotated[
    str | None, typer.Option(metavar="CHAR|tab", help="Delimiter of a table in text. Default: by its header.")
]
SEPARATOR = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Between the classes in a cell of the column of several, --column labels=NAME."),
]
WHERE = Annotated[
    str | None,
    typer.Option(metavar="CONDITIONS", help="Pack only such rows of a table: 'fold != 5 and split in [train, val]'."),
]
GROUP_BY = Annotated[
    str | None,
    typer.Option(
        metavar="media|rows",
        help="One sample for each medium of a table with all its captions, or for each row. Default: as the format has it.",
    ),
]
KEYS = Annotated[
    str | None,
    typer.Option(metavar="files", help="Keys from the names of the files. Default: column `key`, or numbers."),
]
METADATA = Annotated[
    bool, typer.Option("--metadata", help="Keep the other columns of a table, in each sample's .json.")
]
TEMPLATE = Annotated[
    list[str] | None,
    typer.Option(
        help="Caption for samples with a class, with {} for its name; may be given several times. Default: a photo of a {}, "
        "a sound of a {}, a video of a {}."
    ),
]
CAPTIONS = Annotated[bool, typer.Option(help="Write captions made from class names.")]
SHARD_SIZE = Annotated[float, typer.Option(min=0.001, help="Largest size of a shard in MB.")]
SHARD_SAMPLES = Annotated[int, typer.Option(min=1, help="Largest number of samples in a shard.")]
MAX_SIDE = Annotated[
    int | None,
    typer.Option(min=1, help="Shrink larger pictures to this longer side, in pixels, and re-encode them."),
]
SHUFFLE = Annotated[bool, typer.Option(help="Shuffle the samples.")]
SEED = Annotated[int, typer.Option(min=0, help="Seed of the order and of the choice of captions.")]
COLUMN = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MEANING=NAME",
        help="Which column of a table is the image, audio, video, file, caption, label (class number or name), class (its "
        "name), labels (several classes) or key, as in caption=title; a template joins columns: 'audio=audio/{id}.wav'.",
    ),
]
ROOT = Annotated[
    Path | None, typer.Option(callback=local_path, help="Folder that relative paths in a table start from.")
]
SPLIT = Annotated[str | None, typer.Option(help="Which split, of a source that has several.")]
VERIFY = Annotated[
    bool, typer.Option(help="Check header and end of each picture, sound and video, without decoding it.")
]
ON_ERROR = Annotated[str, typer.Option(metavar="raise|skip", help="What to do with unusable rows.")]
WORKERS = Annotated[int, typer.Option(min=1, help="Threads that read and encode.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace the shards of another pack run in OUT.")]


def pack(
    source: SOURCE,
    out: OUT,
    format_name: FORMAT = None,
    template: TEMPLATE = None,
    captions: CAPTIONS = True,
    shard_size: SHARD_SIZE = 256.0,
    shard_samples: SHARD_SAMPLES = 10_000,
    max_side: MAX_SIDE = None,
    shuffle: SHUFFLE = True,
    seed: SEED = 0,
    column: COLUMN = None,
    classnames: CLASSNAMES = None,
    separator: SEPARATOR = ",",
    delimiter: DELIMITER = None,
    where: WHERE = None,
    group_by: GROUP_BY = None,
    keys: KEYS = None,
    metadata: METADATA = False,
    root: ROOT = None,
    split: SPLIT = None,
    verify: VERIFY = True,
    on_error: ON_ERROR = "raise",
    workers: WORKERS = 2,
    overwrite: OVERWRITE = False,
) -> None:
    """Pack a data set into shards: deterministic, resumable, media copied byte for byte.

    Examples:

    `mmssl shards pack photos/ shards/train --template 'a photo of a {}'`

    `mmssl shards pack pairs.csv shards/train --column image=photo --column audio=recording --column caption=title`

    `mmssl shards pack annotations/captions_val2017.json shards/coco/val --root val2017`

    `mmssl shards pack chest_x_ray.csv shards/test --column image=file --column labels=findings --separator '|'`

    `mmssl shards pack ESC-50/meta/esc50.csv shards/esc50/train --where 'fold != 5'`
    """
    from mmssl.core.errors import RecipeError
    from mmssl.curation.pack import PackConfig
    from mmssl.curation.pack import pack as write
    from mmssl.curation.pack_report import packing_summary

    if not captions and template:
        raise RecipeError("--template and --no-captions: templates would have no effect: remove one of the two")
    values = {
        "format": format_name,
        "shard_bytes": int(shard_size * 2**20),
        "shard_samples": shard_samples,
        "templates": (template or None) if captions else [],
        "max_side": max_side,
        "shuffle": seed if shuffle else None,
        "columns": columns_of(column or []),
        "class_names": _class_names(classnames),
        "separator": separator,
        "delimiter": {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        "where": where,
        "split": split,
        "group_by": group_by,
        "keys": keys,
        "metadata": metadata,
        "verify": verify,
        "on_error": on_error,
    }
    config = from_options(PackConfig, values, PACK_OPTIONS)
    with progress_bar("packing") as progress:
        manifest = write(source, out, config, root=root, workers=workers, overwrite=overwrite, progress=progress)
    typer.echo(packing_summary(manifest), err=True)


def columns_of(items: list[str]) -> dict[str, Any]:
    """`Columns` from the command line; files and captions may be given several times."""
    from mmssl.core.errors import RecipeError, did_you_mean
    from mmssl.data.modalities.usual import file_formats

    fields, columns = {"file": "files", "caption": "captions", "class": "class_name"}, dict[str, Any]()
    others = [kind for kind in file_formats() if kind not in MEANINGS]
    meanings, media = (*MEANINGS, *others), dict[str, Any]()
    for item in items:
        meaning, equals, name = item.partition("=")
        if equals and meaning not in meanings:
            raise RecipeError(
                f"--column: got {item!r}: {meaning!r} is none of {', '.join(meanings)}{did_you_mean(meaning, meanings)}"
            )
        named = media if meaning in others else columns
        found = named.setdefault(fields.get(meaning, meaning), [] if meaning in ("file", "caption") else name)
        if isinstance(found, list):
            found.append(name)
        if not (meaning and equals and name) or (isinstance(found, str) and found != name):
            raise RecipeError(
                f"--column: got {item!r}, wanted MEANING=NAME, as in caption=title, and each meaning once"
            )
    return {**columns, "media": media}


def _class_names(file: Path | None) -> list[str] | None:
    """The checked names in a file of class names."""
    from mmssl.core.errors import RecipeError
    from mmssl.data.modalities.class_names import check_class_names, read_class_names

    if file is None:
        return None
    try:
        names, places = read_class_names(file)
        check_class_names(names, places, least=1)
    except ValueError as error:
        raise RecipeError(f"--classnames: {error}") from error
    return list(names)
