"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.outputs import file_to_write, local_path

if TYPE_CHECKING:
    from mmssl.data.shards.remote import Remote

SHARDS = Annotated[list[str], typer.Argument(help="Folders, paths, globs or brace patterns; or URLs with braces.")]
CACHE = Annotated[
    Path | None, typer.Option(callback=local_path, help="Cache of remote shards, as `data.cache.folder`.")
]
ARCH = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="open_clip's name of a model of another library, for files that do not say it."),
]
TOKENIZER = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=local_path,
        help="Folder of the tokenizer of another library's model, where it is not beside the weights.",
    ),
]
JSON = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=file_to_write, help="Write the findings here, as JSON."),
]
PIPE = Annotated[bool, typer.Option("--allow-pipe", help="Run `pipe:` commands.")]


def client_for(shards: list[str], cache: Path | None, allow_pipe: bool) -> Remote | None:
    """Client for URLs, as the options --cache and --allow-pipe say; None: all shards are local, which do without its imports."""
    from mmssl.data.shards.remote import CacheConfig
    from mmssl.data.shards.storage import is_remote

    return CacheConfig(folder=cache).build(allow_pipe) if any(map(is_remote, shards)) else None
