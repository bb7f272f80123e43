"""Remote shards: tables from sidecars or by one download of the shard, bytes in slices through a local cache."""

from __future__ import annotations

import io
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field

from mmssl.core.config import Config, LocalPath
from mmssl.core.errors import DataError
from mmssl.data.shards.cache import Cache
from mmssl.data.shards.patience import Absent, NoRanges, Patience, Refused, shared_outages, without_secrets
from mmssl.data.shards.sidecar import load_sidecar, save_sidecar
from mmssl.data.shards.storage import Storage
from mmssl.data.shards.table import ShardTable, checksums, scan, slice_starts

_log = logging.getLogger(__name__)


SLICE = 64  # samples that are fetched together, unless block shuffle sets another number
_MAX_SIDECAR = 256 << 20
_THREADS = 16


class CacheConfig(Config):
    """How remote shards are fetched and cached on disk.

    Attributes:
        folder: cache folder on a local disk, shared by all processes of a machine; None: the environment variable MMSSL_CACHE,
            or `~/.cache/mmssl/shards`.
        max_bytes: largest total size of the cache; the least recently used files are deleted.
        timeout: seconds without a byte after which an attempt has failed.
        deadline: seconds after a server's first failure, in any stream, evaluator or worker, after which failures end the run.
        threads: threads of each rank that prefetch slices for the workers; 0: workers fetch slices when they need them.
    """

    folder: LocalPath | None = None
    max_bytes: int = Field(default=64 * 10**9, ge=1)
    timeout: float = Field(default=30.0, gt=0)
    deadline: float = Field(default=300.0, ge=0)
    threads: int = Field(default=8, ge=0)

    def build(self, allow_pipe: bool = False) -> Remote:
        """Client for remote shards: cache and storage."""
        patience = Patience(timeout=self.timeout, deadline=self.deadline, outages=shared_outages())
        folder = self.folder or Path(os.environ.get("MMSSL_CACHE") or "~/.cache/mmssl/shards")
        cache = Cache(folder.expanduser(), self.max_bytes, check=patience.outages.check)
        return Remote(cache, Storage(patience, allow_pipe))


@dataclass(frozen=True)
class Remote:
    """Client for remote shards: storage, a local cache, and the number of samples in a slice."""

    cache: Cache
    storage: Storage
    slice: int = SLICE

    def open_shard(self, shard: RemoteShard) -> BinaryIO:
        """Open a whole shard, downloaded if it is not cached. It is not evicted while open."""
        return self.cache.open(shard.key, lambda sink: self.storage.copy(shard.url, sink, shard.size), shard.size)

    def table(self, url: str) -> tuple[RemoteShard, ShardTable]:
        """The table of a shard: from the cache, from its sidecar `<url>.index.npz`, or by a download of the whole shard.

        Raises:
            DataError: the storage fails, or the shard is damaged or holds no sample.
        """
        shard = self.shard(url)
        return shard, load_sidecar(io.BytesIO(self.sidecar(shard)), shard.size)

    def shard(self, url: str) -> RemoteShard:
        """Look up a shard: its size and version.

        Raises:
            DataError: the storage fails, or there is no such shard.
        """
        return RemoteShard(url, *self.storage.facts(url))

    def sidecar(self, shard: RemoteShard) -> bytes:
        """Bytes of a shard's sidecar, from the cache if present.

        Raises:
            DataError: see `table`.
        """
        key = f"index\0{shard.key}"
        file = self.cache.open_cached(key)
        if file is None:
            data = self._sidecar(shard)  # before the cache's lock, as it takes another lock
            file = self.cache.open(key, lambda sink: _write(sink, data))
        with file:
            return file.read()

    def _sidecar(self, shard: RemoteShard) -> bytes:
        """Bytes of a shard's sidecar: the remote one, or made from the whole shard."""
        found = self._fetch_sidecar(shard)
        if found is not None:
            return found[0]
        with self.open_shard(shard):
            path, made = self.cache.path(shard.key), io.BytesIO()
            try:
                save_sidecar(made, checksums(path, scan(path)), os.stat(path))
            except DataError as error:
                raise DataError(str(error).replace(str(path), shard.display_url)) from error
        return made.getvalue()

    def fetch_sidecar(self, shard: RemoteShard) -> ShardTable | None:
        """The table in the remote sidecar; None if it is missing, or belongs to another version of the shard (logged)."""
        found = self._fetch_sidecar(shard)
        return found[1] if found is not None else None

    def _fetch_sidecar(self, shard: RemoteShard) -> tuple[bytes, ShardTable] | None:
        if shard.size is None:
            return None
        address, query, secrets = shard.url.partition("?")
        url = f"{address}.index.npz{query}{secrets}"
        try:
            size = self.storage.facts(url).size
            if size is None or size > _MAX_SIDECAR:
                return None
            found = io.BytesIO()
            self.storage.copy(url, found, size)
            return found.getvalue(), load_sidecar(io.BytesIO(found.getvalue()), shard.size)
        except (Absent, Refused):  # buckets without list permission refuse missing files
            return None
        except ValueError as error:
            _log.warning("ignoring %s, which does not fit the shard: %s", without_secrets(url), error)
            return None


@dataclass(frozen=True)
class RemoteShard:
    """A remote shard: URL, and size and version as in `Facts`."""

    url: str
    size: int | None
    version: str

    @property
    def key(self) -> str:
        """Cache key of its content: the whole URL, its size and version."""
        return f"{self.url}\0{self.size}\0{self.version}"

    @property
    def display_url(self) -> str:
        """Its URL for messages, without secrets."""
        return without_secrets(self.url)


class RemoteReader:
    """Reads byte ranges of remote shards from slices in the cache, each fetched on first use or prefetched.

    A slice is a run of neighbouring samples. Block shuffle draws from few slices at a time, so it fetches each byte at most once
    an epoch, and only once if the cache has room. If the whole shard is cached, it is read instead.

    Args:
        shards, tables: in the same order.
        remote: client that fetches them.
    """

    def __init__(self, shards: Sequence[RemoteShard], tables: Sequence[ShardTable], remote: Remote) -> None:
        self.shards = shards
        self.sizes = [table.shard_bytes for table in tables]
        self.remote = remote
        self._cuts = [_cuts(table, remote.slice) for table in tables]
        self._only_whole = {number for number, shard in enumerate(shards) if shard.size is None}
        self._last = _Last()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of shard `number`.

        Raises:
            DataError: the storage fails, or the shard has changed since it was indexed.
        """
        parts = []
        while size:
            piece = self.slice_of(number, offset)
            if self._last.place != (number, piece):  # members of a sample lie in one slice
                self._last.close()
                self._last.keep((number, piece), *self._open(number, piece))
            most = min(size, int(self._cuts[number][piece + 1]) - offset)
            part = os.pread(self._last.file.fileno(), most, offset - self._last.first)
            if not part:
                raise DataError(
                    f"{self.shards[number].display_url} ends at byte {offset}: it has changed since it was indexed; restart the run"
                )
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_anew(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of shard `number`, fetched again: cached copies are deleted.

        Raises:
            DataError: as `read`.
        """
        _log.warning(
            "%s, byte %d: the cached bytes differ from their checksum: fetching them again",
            self.shards[number].display_url, offset,
        )  # fmt: skip
        self._last.close()
        self.remote.cache.remove(self.shards[number].key)
        for piece in range(self.slice_of(number, offset), self.slice_of(number, offset + max(size, 1) - 1) + 1):
            self.remote.cache.remove(self._slice_key(number, piece))
        return self.read(number, offset, size)

    def close(self) -> None:
        """Close the open slice; the next read opens it again."""
        self._last.close()

    def _slice_key(self, number: int, piece: int) -> str:
        start, stop = self._cuts[number][piece : piece + 2]
        return f"{self.shards[number].key}\0{start}\0{stop}"

    def slice_of(self, number: int, offset: int) -> int:
        """Number of the slice of a shard that contains the byte at `offset`."""
        return bisect_right(self._cuts[number], offset) - 1

    def slice_bytes(self, number: int, piece: int) -> int:
        """Size of a slice in bytes."""
        return int(self._cuts[number][piece + 1] - self._cuts[number][piece])

    def fetch(self, number: int, piece: int) -> None:
        """Fetch a slice into the cache, unless it is there."""
        self._open(number, piece)[1].close()

    def _open(self, number: int, piece: int) -> tuple[int, BinaryIO]:
        """An open file that contains the slice, and the byte of the shard that the file begins with."""
        shard = self.shards[number]
        if number not in self._only_whole:
            whole = self.remote.cache.open_cached(shard.key, shard.size)
            if whole is not None:
                return 0, whole
            start, stop = (int(cut) for cut in self._cuts[number][piece : piece + 2])

            def fill(sink: BinaryIO) -> None:
                sink.write(self.remote.storage.read(shard.url, start, stop, self.sizes[number]))

            try:
                return start, self.remote.cache.open(self._slice_key(number, piece), fill, stop - start)
            except NoRanges:
                self._only_whole.add(number)
        whole = self.remote.open_shard(shard)
        got = os.fstat(whole.fileno()).st_size
        if got != self.sizes[number]:
            whole.close()
            raise DataError(
                f"{shard.display_url} has changed since it was indexed: it had {self.sizes[number]} bytes and "
                f"now has {got}; restart the run"
            )
        return 0, whole


class _Last(threading.local):
    """The slice that a thread read last, still open. Not pickled: a copy starts without one."""

    def __init__(self) -> None:
        self.place: tuple[int, int] | None = None
        self.first = 0
        self.file: BinaryIO = io.BytesIO()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Last, ()

    def keep(self, place: tuple[int, int], first: int, file: BinaryIO) -> None:
        self.place, self.first, self.file = place, first, file

    def close(self) -> None:
        self.place = None
        self.file.close()


def open_remote(urls: Sequence[str], remote: Remote) -> tuple[list[ShardTable], RemoteReader]:
    """Open remote shards: their tables, fetched in parallel, and a reader of their bytes.

    Raises:
        DataError: unusable shards. The message names all of them, unless the storage is down.
    """
    found: dict[int, tuple[RemoteShard, ShardTable]] = {}
    problems: dict[int, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = {pool.submit(remote.table, url): i for i, url in enumerate(urls)}
        for future in as_completed(futures):
            try:
                found[futures[future]] = future.result()
            except DataError as error:
                problems[futures[future]] = str(error)
                if len(problems) > 10:
                    pool.shutdown(cancel_futures=True)
                    break
    if problems:
        lines = "\n".join(problems[i] for i in sorted(problems))
        raise DataError(f"{len(problems)} of {len(urls)} shards cannot be used:\n{lines}")
    shards, tables = zip(*(found[i] for i in range(len(urls))), strict=True)
    return list(tables), RemoteReader(shards, tables, remote)


def _cuts(table: ShardTable, size: int) -> np.ndarray:
    """Byte offsets [slices + 1] at which slices of about `size` samples begin; the last is the end of the shard."""
    headers = table.offset[table.members[slice_starts([len(table)], size)[1:]]] - 512
    return np.unique(np.concatenate([[0], headers, [table.shard_bytes]]))


def _write(sink: BinaryIO, data: bytes) -> None:
    sink.write(data)
