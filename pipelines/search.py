"""`mmssl search`: find the nearest samples of an embedded folder to a text, a picture or a sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.embedded import model_of_folder, samples_of, searcher_of
from pipelines.outputs import file_to_write

if TYPE_CHECKING:
    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from mmssl.recipe.model import Model


def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `mmssl embed` wrote.")],
    query: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A sentence, or a picture, sound or other file.")],
    top: Annotated[int, typer.Option(min=1, help="Samples to show of each modality.")] = 10,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="What to search; may be given several times. Default: all that are embedded."),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="MODALITY", help="Modality of the query. Default: by its extension, or text."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The model, if it was moved since. Default: the one that embedded DIR."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with all rows, even if there is an index.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=file_to_write, help="Write a page with pictures and sounds here."),
    ] = None,
) -> None:
    """Find samples across modalities: exact cosines to all rows, read tile by tile; or to candidates of an index (`mmssl index`).

    Examples:

    `mmssl embed runs/first --shards shards/test --out embeddings`

    `mmssl search embeddings "a red circle" --top 5`

    `mmssl search embeddings photo.jpg --modality text --html found.html`
    """
    from mmssl.core.errors import DataError, os_words
    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from mmssl.training.runtime.console import say
    from pipelines.command import one_of

    index = EmbeddedFolder.open(folder)
    names: list[str] = index.manifest["modalities"]
    wanted = [one_of("--modality", name, tuple(names)) for name in modality or names]
    trained = model_of_folder(index, model)
    of = one_of("--as", as_, tuple(trained.embedding.heads)) if as_ is not None else modality_of(query, trained)
    value: Any = query if trained.modalities[of].language and not Path(query).is_file() else Path(query)
    inputs: dict[str, Any] = {of: [value]}
    try:
        row = trained.encode(**inputs)[of][0].numpy()
    except ValueError as error:  # an input that cannot be read: the only value here that comes from outside
        cause = error.__cause__
        why = os_words(cause if isinstance(cause, Exception) else error)
        advice = f"; wanted a file of {of}" if isinstance(cause, OSError) else ""
        raise DataError(f"got the query {query!r}: {why}{advice}") from error
    found = {name: searcher_of(index, name, exact)(row, top) for name in wanted}
    keys = index.keys([hit.sample for hits in found.values() for hit in hits])
    for name, hits in found.items():
        typer.echo(f"{name}:")
        for place, hit in enumerate(hits, 1):
            typer.echo(f"  {place:>3}  {hit.score:.4f}  {keys[hit.sample]}")
    if html is not None:
        _page(html, trained, index, of, query, value, found)
        say(f"page in {html}")


def modality_of(query: str, model: Model) -> str:
    """The modality of a query: by the extension of a file, else the one of sentences.

    Raises:
        DataError: a file that no modality reads, a name of a file that does not exist, or no modality of sentences.
    """
    from mmssl.core.errors import DataError

    names: list[str] = [*model.embedding.heads]
    extension = Path(query).suffix[1:].lower()
    readers = [name for name in names if extension and extension in model.modalities[name].extensions]
    if Path(query).is_file():
        if not readers:
            reads = "; ".join(f"{name}: {', '.join(model.modalities[name].extensions)}" for name in names)
            raise DataError(f"{query}: no modality reads .{extension}; they read {reads}. Name one by --as")
        return readers[0]
    if readers:
        raise DataError(f"got {query!r}, and there is no such file; name another, or search for these words with --as")
    languages = [name for name in names if model.modalities[name].language]
    if not languages:
        raise DataError(
            f"got the text {query!r}, and this model reads no sentences; give a file for {', '.join(names)}"
        )
    return languages[0]


def _page(path: Path, model: Model, index: EmbeddedFolder, of: str, query: str, value: Any, found: Any) -> None:
    from mmssl.reporting.search_page import write_page
    from mmssl.reporting.shown import show_sample, shown_sample

    samples = samples_of(index, model)
    data = value.read_bytes() if isinstance(value, Path) else b""
    extension = value.suffix[1:].lower() if isinstance(value, Path) else ""
    asked = shown_sample(model.modalities[of], of, model.modalities[of].from_input(value), data, extension)
    answers = {}
    for name, hits in found.items():
        first = index.first_rows(name, [hit.sample for hit in hits])
        answers[name] = [
            (show_sample(samples, model.modalities[name], hit.sample, hit.row - start), hit.score)
            for hit, start in zip(hits, first, strict=True)
        ]
    write_page(path, f"{query}: nearest samples", asked, answers)


if __name__ == "__main__":
    from pipelines.command import single

    single(search)
