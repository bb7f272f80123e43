"""From what people write (paths, folders, globs, brace patterns) to a list of shard files that are there."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from mmssl.core.errors import DataError

_URL = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*://|pipe:)")


def expand(shards: Sequence[str | Path]) -> list[Path]:
    """Expand patterns in the order given: braces as WebDataset does (`{000..127}`, `{train,extra}`), then globs, sorted.

    A folder stands for its `*.tar` files, sorted. A path that exists is taken as it is, whatever characters it has.

    Raises:
        DataError: nothing given, a pattern without files, missing files (all are named), a file given twice, or an address
            that is not a local path.
    """
    if isinstance(shards, str | Path):
        raise ValueError(f"got {shards!r}, wanted a list of paths or patterns: [{str(shards)!r}]")
    paths: list[Path] = []
    missing: list[str] = []
    for pattern in shards:
        for piece in _braces(str(pattern)):
            found = _find(piece)
            paths += found
            if not found:
                missing.append(piece if piece == str(pattern) else f"{piece} (from {pattern})")
    if missing:
        shown = "\n".join(f"  {name}" for name in missing[:5])
        more = f"\n  ... and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"no such shard, looked from {Path.cwd()}:\n{shown}{more}\nCheck the path, or make shards with `mmssl shards pack`."
        )
    if not paths:
        raise DataError("no shards given: name at least one path, folder or pattern under `shards`")
    seen: dict[Path, Path] = {}
    for path in paths:
        twice = seen.setdefault(path.resolve(), path)
        if twice is not path:
            raise DataError(
                f"{path} is given twice (also as {twice}): its samples would be drawn twice as often; name it once"
            )
    return paths


def _braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    if _URL.match(pattern):
        raise DataError(f"got the shard address {pattern!r}, wanted a local path: fetch the shards first")
    if "{" not in pattern or Path(pattern).exists():
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"got the shard pattern {pattern!r}, wanted balanced braces as in '{{000..127}}.tar'"
        ) from error


def _find(piece: str) -> list[Path]:
    path = Path(piece).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.exists():
        return [path]
    if glob.has_magic(piece):
        return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    return []
