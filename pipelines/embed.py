"""`mmssl embed`: write the embeddings of shards, folders or tables, for search and analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.embedded import model_facts
from pipelines.options import ARCH, from_options
from pipelines.outputs import local_path
from pipelines.pack import COLUMN, FORMAT, FORMATS, PACK_OPTIONS, ROOT, WHERE, columns_of
from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.curation.loose_source import LooseSource
    from mmssl.recipe.model import Model

SHARDS = Annotated[
    list[str] | None, typer.Option(help="Folder, path or brace pattern of shards; may be given several times.")
]
FILES = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        callback=local_path,
        help=f"In place of shards: a folder or table; {FORMATS}. Each line of a text is a caption.",
    ),
]
MODALITY = Annotated[
    list[str] | None, typer.Option(help="May be given several times. Default: all in the shared space.")
]
FEATURES = Annotated[bool, typer.Option("--features", help="Pooled encoder features before any head, not embeddings.")]
OUT = Annotated[Path, typer.Option(metavar="DIR", callback=local_path, help="Folder for the arrays; made if needed.")]
MAX_FAILURES = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Largest share of samples that cannot be decoded; above it this ends.")
]
CHECKPOINT = Annotated[
    Path,
    typer.Argument(callback=local_path, help="A run or checkpoint folder; or a model, as `mmssl import` takes them."),
]
DAY = 24 * 60.0
"""Minutes that a process waits for the others: shares of a day's work end at different times."""


def embed(
    checkpoint: CHECKPOINT,
    out: OUT,
    shards: SHARDS = None,
    files: FILES = None,
    format_name: FORMAT = None,
    column: COLUMN = None,
    where: WHERE = None,
    root: ROOT = None,
    modality: MODALITY = None,
    features: FEATURES = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16 instead of float32.")] = False,
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint of a run folder.")] = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples encoded at a time.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    max_failures: MAX_FAILURES = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Embed again what DIR holds already.")] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    arch: ARCH = None,
) -> None:
    """Embed shards, a folder or a table: `DIR/<modality>.npy` [rows, E] of unit norm, `DIR/<modality>.samples.npy` [rows] with the
    number of the sample of each row, `DIR/keys.txt` with a key a line, `DIR/samples.parquet` (extra `parquet`) with key, place and
    rows of each sample, and `DIR/manifest.json`.

    A sample with several captions gives several rows; a sample that lacks a modality, or cannot be decoded, gives none and is
    counted in the manifest. A modality that no sample has gets no file, and is an error if --modality names it. Files appear only
    when all are finished. The same command again, after a kill or an error, goes on where it stopped; a finished one does nothing.

    Examples:

    `mmssl embed runs/vit_b_32 --shards 'test/{000000..000007}.tar' --out embeddings`

    `mmssl embed runs/vit_b_32 --files pairs.csv --column image=photo --column caption=title --out embeddings`

    `torchrun --nproc-per-node 8 -m pipelines.embed runs/vit_b_32 --shards test --out embeddings`
    """
    from mmssl.core.distributed import world_size
    from mmssl.evaluation.embeddings.write import write_embeddings
    from mmssl.recipe.load import load
    from mmssl.training.runtime.console import say
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    loose = _loose(shards, files, format_name, column, where, root)
    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")), timeout=DAY)
    try:
        model = load(checkpoint, which=one_of("--which", which, ("best", "last")), device=launch.device, arch=arch)
        allowed = _modalities(model, features)
        with progress_bar("embedding" + (f", 1 of {world_size()} processes" if world_size() > 1 else "")) as progress:
            written = write_embeddings(
                model.embedding,
                model.modalities,
                loose.index() if loose is not None else shards or [],
                out,
                wanted=[one_of("--modality", name, allowed) for name in modality or allowed],
                required=bool(modality),
                features=features,
                half=half,
                batch_size=batch_size,
                workers=workers,
                max_failures=max_failures,
                remote=model.recipe.data.cache.build(model.recipe.data.allow_pipe),
                source=model_facts(model) | ({"files": loose.as_json()} if loose is not None else {}),
                overwrite=overwrite,
                progress=progress if launch.is_main else None,
            )
        for name, rows in written.items():
            say(f"{name}: " + (f"{rows} rows in {out / name}.npy" if rows else "no sample has it, so it has no file"))
    finally:
        launch.close()


def _modalities(model: Model, features: bool) -> tuple[str, ...]:
    """The modalities that a model embeds, or of which its encoders give features.

    Raises:
        RecipeError: it has no embeddings.
    """
    from mmssl.core.errors import RecipeError

    allowed = tuple(model.recipe.encoders if features else model.embedding.heads)
    if not allowed:
        raise RecipeError(
            "this model has no embeddings: its objective aligns no modalities; --features writes what its encoders give"
        )
    return allowed


def _loose(
    shards: list[str] | None,
    files: Path | None,
    format_name: str | None,
    column: list[str] | None,
    where: str | None,
    root: Path | None,
) -> LooseSource | None:
    """The folder or table to embed; None: shards."""
    from mmssl.core.errors import RecipeError
    from mmssl.curation.loose_source import LooseSource
    from mmssl.curation.pack_config import PackConfig

    given = {"--format": format_name, "--column": column, "--where": where, "--root": root}
    if (files is None) == (not shards):
        raise RecipeError(f"got {'both' if files else 'neither'} of --shards and --files, wanted one of them")
    if files is None:
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise RecipeError(f"{', '.join(wrong)}: no effect on shards; leave it out, or name a table by --files")
        return None
    values = {"format": format_name, "columns": columns_of(column or []), "where": where}
    return LooseSource(files, from_options(PackConfig, values, PACK_OPTIONS), root)


if __name__ == "__main__":
    from pipelines.command import single

    single(embed)
