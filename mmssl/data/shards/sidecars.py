"""Making and checking the sidecars of many shards, local or remote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mmssl.core.errors import DataError, os_words
from mmssl.data.shards.paths import expand, expand_urls
from mmssl.data.shards.patience import without_secrets
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.data.shards.sidecar import load_sidecar, sidecar_path, table_differences, write_sidecar
from mmssl.data.shards.storage import is_remote
from mmssl.data.shards.table import ShardTable, checksums, scan
from mmssl.data.shards.writer import Progress, write_atomically

T = TypeVar("T")

_THREADS = 8


def write_sidecars(
    shards: Sequence[str],
    remote: Remote | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> int:
    """Write the index sidecar of each shard: beside local shards, for remote ones into the cache and as `out/<name>.index.npz`.

    Args:
        shards: all local, or all remote; see `ShardIndex.open`.
        remote: client for URLs; default: one with the usual cache.
        out: folder for the sidecars of remote shards, for upload beside them.
        force: replace sidecars that disagree with their local shards, see `write_sidecar`.

    Returns:
        Number of shards.

    Raises:
        DataError: unusable shards (the message names all); two shards of one name with `out`; `out` with local shards.
    """
    if not any(map(is_remote, shards)):
        if out is not None:
            raise DataError(f"--out: got {out} for local shards, whose sidecars are written beside them: omit --out")
        paths = expand(shards)
        problems = _each(paths, lambda path: _attempt(path, lambda: write_sidecar(path, force=force)), progress)
    else:
        urls, client = expand_urls(shards), remote or CacheConfig().build()
        names = [f"{url.split('?')[0].rsplit('/', 1)[-1]}.index.npz" for url in urls]
        if out is not None and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"--out: two shards would write {out / twice}: index one folder at a time")

        def make(place: tuple[str, str]) -> str | None:
            url, name = place
            return _attempt(url, lambda: _write_remote(client, url, out / name if out is not None else None))

        problems = _each(list(zip(urls, names, strict=True)), make, progress)
    if any(problems):
        raise DataError(_summary(problems, "cannot be indexed"))
    return len(problems)


def check_sidecars(shards: Sequence[str], remote: Remote | None = None, progress: Progress | None = None) -> int:
    """Read every shard again and compare it with its sidecar.

    Returns:
        Number of shards.

    Raises:
        DataError: sidecars that are missing, stale, damaged or wrong; the message names all.
    """
    if any(map(is_remote, shards)):
        client = remote or CacheConfig().build()
        problems = _each(expand_urls(shards), lambda url: _attempt(url, lambda: _check_remote(client, url)), progress)
    else:
        problems = _each(expand(shards), lambda path: _attempt(path, lambda: _check_local(path)), progress)
    if any(problems):
        raise DataError(_summary(problems, "have no valid sidecar") + "\nMake missing ones with `mmssl shards index`.")
    return len(problems)


def _write_remote(remote: Remote, url: str, target: Path | None) -> None:
    data = remote.sidecar(remote.shard(url))
    if target is not None:
        write_atomically(target, data)


def _check_local(shard: Path) -> None:
    path = sidecar_path(shard)
    if not path.exists():
        raise DataError(f"{shard}: no sidecar")
    try:
        table = load_sidecar(path, shard.stat().st_size)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    _compare(table, checksums(shard, scan(shard)), str(path))


def _check_remote(remote: Remote, url: str) -> None:
    shard = remote.shard(url)
    found = remote.fetch_sidecar(shard)
    if found is None:
        raise DataError(f"{shard.display_url}: no valid sidecar")
    with remote.open_shard(shard):
        path = remote.cache.path(shard.key)
        _compare(found, checksums(path, scan(path)), f"the sidecar of {shard.display_url}")


def _compare(saved: ShardTable, true: ShardTable, where: str) -> None:
    wrong = table_differences(saved, true)
    if wrong:
        raise DataError(
            f"{where} disagrees with the shard: {wrong[0]}" + (f" and {len(wrong) - 1} more" if wrong[1:] else "")
        )


def _attempt(shard: str | Path, action: Callable[[], object]) -> str | None:
    """The error message of an action with a shard, or None."""
    try:
        action()
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{without_secrets(str(shard))}: {os_words(error)}"
    return None


def _each(items: Sequence[T], work: Callable[[T], str | None], progress: Progress | None) -> list[str | None]:
    """The error message of each item or None, computed in parallel."""
    problems = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for problem in pool.map(work, items):
            problems.append(problem)
            if progress is not None:
                progress(len(problems), len(items))
    return problems


def _summary(problems: Sequence[str | None], what: str) -> str:
    bad = [problem for problem in problems if problem]
    more = f"\n... and {len(bad) - 10} more" if len(bad) > 10 else ""
    return f"{len(bad)} of {len(problems)} shards {what}:\n" + "\n".join(bad[:10]) + more
