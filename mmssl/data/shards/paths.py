"""Expand paths, folders, globs and brace patterns to a list of existing shard files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.storage import is_remote


def expand(shards: Sequence[str | Path]) -> list[Path]:
    """Expand patterns in the order given: braces as WebDataset does (`{000..127}`, `{train,extra}`), then globs, sorted.

    A folder means its `*.tar` files, sorted. An existing path is taken literally, even with pattern characters in its name.

    Raises:
        DataError: an empty list, a pattern without files, missing files (the message names them), a file given twice, or a
            URL.
    """
    if isinstance(shards, str | Path):
        raise ValueError(f"got {shards!r}, wanted a list of paths or patterns: [{str(shards)!r}]")
    paths: list[Path] = []
    missing: list[str] = []
    for pattern in shards:
        if is_remote(str(pattern)):
            raise DataError(
                f"got the shard address {str(pattern)!r}, wanted a local path: download the shards first, or put them into "
                "their own source (`data.sources`)"
            )
        for piece in _braces(str(pattern)):
            found = _find(piece)
            paths += found
            if not found:
                missing.append(piece if piece == str(pattern) else f"{piece} (from {pattern})")
    if missing:
        shown = "\n".join(f"  {name}" for name in missing[:5])
        more = f"\n  ... and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"no such shard (relative to {Path.cwd()}):\n{shown}{more}\nCheck the path, or make shards with `mmssl shards pack`."
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


def expand_urls(shards: Sequence[str | Path]) -> list[str]:
    """Expand braces in URLs and `pipe:` commands, in the order given. There are no globs: nothing is listed.

    Raises:
        DataError: a URL given twice, braces that are not balanced, or a local path among them.
    """
    urls: dict[str, str] = {}
    for pattern in map(str, shards):
        if not is_remote(pattern):
            raise DataError(
                f"got the local shards {pattern!r} among remote ones: put them into two sources (`data.sources`)"
            )
        for url in _braces(pattern):
            if url in urls:
                raise DataError(f"{url} is given twice: its samples would be drawn twice as often; name it once")
            urls[url] = pattern
    return list(urls)


def stamps(shards: Sequence[str | Path]) -> list[tuple[Path, int, int]]:
    """Path, size in bytes and modification time of each local shard, in order, to detect changes. Remote shards have none.

    Raises:
        DataError: as `expand`.
    """
    if any(is_remote(str(shard)) for shard in shards):
        return []
    found = [(path, path.stat()) for path in expand(shards)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    if "{" not in pattern or (not is_remote(pattern) and Path(pattern).exists()):
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
