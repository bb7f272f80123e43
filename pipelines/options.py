"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHARDS = Annotated[list[str], typer.Argument(help="Folders, paths, globs or brace patterns; or URLs with braces.")]
CACHE = Annotated[Path | None, typer.Option(help="Cache of remote shards, as `data.cache.folder`.")]
PIPE = Annotated[bool, typer.Option("--allow-pipe", help="Run `pipe:` commands.")]
