"""`mmssl index`: build indexes of a large folder of embeddings, and measure what they miss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.progress import progress_bar


def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `mmssl embed` wrote.")],
    modality: Annotated[
        list[str] | None,
        typer.Option(help="What to index; may be given several times. Default: all that are embedded."),
    ] = None,
    connectivity: Annotated[int, typer.Option(min=2, max=256, help="Edges of a node of the graph.")] = 16,
    expansion_add: Annotated[int, typer.Option(min=1, max=10_000, help="Candidates when a row is inserted.")] = 128,
    expansion_search: Annotated[
        int, typer.Option(min=1, max=10_000, help="Candidates of a query: more find more, and take longer.")
    ] = 64,
    queries: Annotated[int, typer.Option(min=1, help="Largest number of queries to measure recall with.")] = 1000,
    threads: Annotated[
        int,
        typer.Option(min=0, help="Threads that insert rows; 0: all cores. With 1 the same rows give the same file."),
    ] = 0,
) -> None:
    """Build an index (HNSW, extra `index`) of each modality of a folder, which `search` and `serve` then use.

    Recall@10 beside exact search is printed, and stands in `DIR/<modality>.index.json`: of rows that were held out, and of the rows
    of each other modality as queries. An index belongs to the embeddings that it was built of: others are refused.
    While it is built, all rows (in float16) and edges of a modality are in memory; afterwards it is read memory-mapped.

    Examples:

    `mmssl index embeddings`

    `mmssl index embeddings --modality image --connectivity 32 --expansion-search 256`
    """
    from mmssl.evaluation.embeddings.neighbour_index import GraphSettings, K, build_index
    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from pipelines.command import one_of

    embedded = EmbeddedFolder.open(folder)
    names: list[str] = embedded.manifest["modalities"]
    settings = GraphSettings(connectivity, expansion_add, expansion_search, queries, threads)
    for name in [one_of("--modality", name, tuple(names)) for name in modality or names]:
        with progress_bar(f"indexing {name}") as progress:
            made = build_index(embedded, name, settings, progress)
        found = [
            f"{one['recall']:.4f} ({what}, {one['queries']:,} queries)" for what, one in made[f"recall@{K}"].items()
        ]
        typer.echo(f"{name}: {made['rows']:,} rows, recall@{K} {', '.join(found) or 'not measured: too few rows'}")


if __name__ == "__main__":
    from pipelines.command import single

    single(index)
