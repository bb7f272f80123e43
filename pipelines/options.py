"""Options that several verbs share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pipelines.outputs import file_to_write, local_path

if TYPE_CHECKING:
    from mmssl.core.config import Config
    from mmssl.data.shards.remote import Remote

C = TypeVar("C", bound="Config")

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


def from_options(config: type[C], values: Mapping[str, Any], renamed: Mapping[str, str]) -> C:
    """A config of the values of options, by key; its errors name the options.

    Args:
        config: its class.
        values: key -> value, as in a recipe.
        renamed: key -> option, where that is not the key with `--` before it.

    Raises:
        RecipeError: with every mistake, one a line.
    """
    from mmssl.recipe.validate import validate_text

    def option(path: tuple[str | int, ...]) -> str:
        return renamed.get(str(path[0]), f"--{str(path[0]).replace('_', '-')}")

    return validate_text(config, json.dumps(values), "command line", options=option)
