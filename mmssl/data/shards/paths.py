"""Expand paths, folders, globs and brace patterns to a list of existing shard files."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from mmssl.core.errors import DataError, os_words
from mmssl.data.shards.storage import is_remote

_FOLDER = "a folder"
_OTHER_FILES = {
    stat.S_ISDIR: _FOLDER,
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def expand(shards: Sequence[str | Path]) -> list[Path]:
    """Expand patterns in the order given: braces as WebDataset does (`{000..127}`, `{train,extra}`), then globs, sorted.

    A folder means its `*.tar` files, sorted. An existing path is taken literally, even with pattern characters in its name.
    Nothing is opened: a named pipe would block.

    Raises:
        DataError: an empty list, a pattern without files, missing files (the message names them), what is no regular file (links
            that lead nowhere, folders, pipes, devices), a file given twice, or a URL.
    """
    if isinstance(shards, str | Path):
        raise ValueError(f"got {shards!r}, wanted a list of paths or patterns: [{str(shards)!r}]")
    paths: list[Path] = []
    missing: list[str] = []
    unusable: list[str] = []
    for pattern in shards:
        if is_remote(str(pattern)):
            raise DataError(
                f"got the shard address {str(pattern)!r}, wanted a local path: download the shards first, or put them into "
                "their own source (`data.sources`)"
            )
        for piece in _braces(str(pattern)):
            found = _find(piece)
            paths += found
            unusable += [f"{path}: {reason}" for path in found if (reason := _why_unusable(path))]
            if not found:
                name = piece if piece == str(pattern) else f"{piece} (from {pattern})"
                missing.append(name + (_without_shards(piece) if os.path.isdir(piece) else ""))
    if missing:
        raise DataError(
            f"no such shard (relative to {Path.cwd()}):\n{_shown(missing)}\nCheck the path, or make shards with "
            "`mmssl shards pack`."
        )
    if unusable:
        raise DataError(
            f"no shards, wanted regular tar files:\n{_shown(unusable)}\nMend them, or take them out of the list or folder."
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
    """What stands at a path, in the folder at it, or fits the pattern, in order; folders within only if named like shards."""
    path = Path(piece).expanduser()
    if os.path.isdir(path):
        inside = sorted(path.glob("*.tar"))
        return inside or ([path] if _why_unusable(path) != _FOLDER else [])
    try:
        path.lstat()
    except FileNotFoundError:
        named = map(Path, glob.glob(str(path), recursive=True) if glob.has_magic(piece) else [])
        return sorted(one for one in named if one.suffix == ".tar" or not os.path.isdir(one))
    except (OSError, ValueError):
        pass
    return [path]


def _without_shards(folder: str) -> str:
    """What to say of a folder without shards: folders in it that have some."""
    inside = sorted(str(path) for path in Path(folder).iterdir() if path.is_dir() and any(path.glob("*.tar")))
    return ": a folder without .tar files" + (f"; give {' or '.join(inside[:4])}, which has some" if inside else "")


def _why_unusable(path: Path) -> str | None:
    """Why a path is no shard that can be opened; None if it is a regular file of this user."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        leads = f"a symbolic link to {os.readlink(path)}: " if os.path.islink(path) else ""
        return leads + os_words(error)
    except ValueError:
        return "its name has a NUL byte"
    if not os.access(path, os.R_OK):
        return "this user has no permission to read it"
    return next((what for kind, what in _OTHER_FILES.items() if kind(mode)), None)


def _shown(names: Sequence[str]) -> str:
    more = f"\n  ... and {len(names) - 5} more" if len(names) > 5 else ""
    return "\n".join(f"  {name}" for name in names[:5]) + more
