"""Remote storage: sizes, byte ranges and whole files by URL (fsspec)."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import tempfile
from typing import Any, BinaryIO, NamedTuple

from mmssl.core.errors import DataError
from mmssl.data.shards.patience import NoRanges, Patience, without_secrets

_log = logging.getLogger(__name__)

EXTRAS = {"s3": "mmssl[s3]", "gs": "mmssl[gs]", "gcs": "mmssl[gs]", "hf": "huggingface_hub"}
SCHEMES = ("http", "https", "memory", *EXTRAS)
PIPE = "pipe:"
_PIECE = 16 << 20
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime", "created")


class Facts(NamedTuple):
    """A remote file: size in bytes (None: unknown), and a version that changes with the content (ETag, time)."""

    size: int | None
    version: str


class Storage:
    """Reads URLs through fsspec, and the output of shell commands if allowed. Each process makes its clients on first use.

    Args:
        patience: retry policy.
        allow_pipe: whether `pipe:` commands may run.
    """

    def __init__(self, patience: Patience | None = None, allow_pipe: bool = False) -> None:
        self.patience = patience or Patience()
        self.allow_pipe = allow_pipe
        self._clients: dict[tuple[int, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"patience": self.patience, "allow_pipe": self.allow_pipe, "_clients": {}}

    def facts(self, url: str) -> Facts:
        """Size and version of a file; both unknown for a `pipe:` command.

        Raises:
            Absent, Refused, DataError: see `Patience`; DataError also for a command that is not allowed.
        """
        if url.startswith(PIPE):
            self._check_allowed(url)
            return Facts(None, "")
        info = self.patience(url, "its size", lambda: self._client(url).info(url))
        size = info.get("size")
        version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return Facts(None if size is None else int(size), version)

    def read(self, url: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start ... stop-1 of a file of `size` bytes.

        Raises:
            NoRanges: the server does not support ranges. Others: see `Patience`.
        """

        def attempt() -> bytes:
            client = self._client(url)
            if not url.startswith("http"):
                data = client.cat_file(url, start=start, end=stop)
            else:
                # `cat_file` would read the whole file from a server without range support.
                with client.open(url, "rb", cache_type="none", size=size) as file:
                    file.seek(start)
                    try:
                        data = file.read(stop - start)
                    except ValueError as error:
                        raise NoRanges(str(error)) from error
            if len(data) != stop - start:
                raise OSError(errno.EIO, f"got {len(data)} bytes, wanted {stop - start}")
            return bytes(data)

        return self.patience(url, f"byte {start} to {stop}", attempt)

    def copy(self, url: str, sink: BinaryIO, size: int | None) -> None:
        """Download a whole file into `sink`, in pieces, so that a failure costs one piece.

        Raises:
            Absent, DataError: see `Patience`; DataError also for a command that is not allowed or fails.
        """
        if url.startswith(PIPE):
            self._run(url, sink)
            return
        if size is not None:
            try:
                for start in range(0, size, _PIECE):
                    sink.write(self.read(url, start, min(start + _PIECE, size), size))
                return
            except NoRanges:
                _log.info("%s: the server does not support ranges; downloading the whole file", without_secrets(url))
        self.patience(url, "as a whole", lambda: self._stream(url, sink, size))

    def _stream(self, url: str, sink: BinaryIO, size: int | None) -> None:
        sink.seek(0)
        with self._client(url).open(url, "rb", block_size=0, **({"size": 1} if url.startswith("http") else {})) as file:
            while piece := file.read(1 << 20):
                sink.write(piece)
        if size is None:
            sink.truncate()  # the rest of an earlier attempt
        elif sink.tell() != size:
            raise OSError(errno.EIO, f"got {sink.tell()} bytes, wanted {size}")

    def _run(self, url: str, sink: BinaryIO) -> None:
        """Write the output of a shell command into `sink`. No retries: the command can retry by itself."""
        self._check_allowed(url)
        with tempfile.TemporaryFile() as complaints:
            command = ["/bin/sh", "-c", url.removeprefix(PIPE)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=complaints, check=False)  # noqa: S603
            complaints.seek(max(0, complaints.tell() - 2000))
            tail = complaints.read().decode("utf-8", "replace").strip()
        if done.returncode:
            raise DataError(f"{url}: the command exited with code {done.returncode}: {tail or 'no error output'}")
        sink.seek(0, os.SEEK_END)

    def _check_allowed(self, url: str) -> None:
        if not self.allow_pipe:
            raise DataError(
                f"{url}: got a shell command, which would run with your rights; if you trust the recipe, set "
                "`data.allow_pipe: true`"
            )

    def _client(self, url: str) -> Any:
        """The fsspec file system of a URL. Clients have threads and sockets, which a forked process must not share."""
        import fsspec

        scheme = url.split("://", 1)[0].lower()
        key = (os.getpid(), scheme)
        if key not in self._clients:
            if scheme not in SCHEMES:
                raise DataError(
                    f"{without_secrets(url)}: got the scheme {scheme!r}, wanted one of {', '.join(SCHEMES)}"
                )
            try:
                client = fsspec.filesystem(scheme, skip_instance_cache=True, **self._options(scheme))
            except ImportError as error:
                raise DataError(
                    f"{without_secrets(url)}: {error}: pip install '{EXTRAS.get(scheme, 'fsspec')}'"
                ) from error
            if scheme == "s3":
                client.retries = 1
            self._clients[key] = client
        return self._clients[key]

    def _options(self, scheme: str) -> dict[str, Any]:
        timeout = self.patience.timeout
        if scheme in ("http", "https"):
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
            return {"client_kwargs": {"timeout": limits, "trust_env": True}, "headers": {"Accept-Encoding": "identity"}}
        if scheme == "s3":
            # Neither botocore nor s3fs (see `_client`) retries: their retries would know neither the deadline nor a stop.
            retries = {"total_max_attempts": 1}
            return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout, "retries": retries}}
        return {}


def is_remote(shard: str) -> bool:
    """Whether a shard is written as a URL or a command."""
    return "://" in shard or shard.startswith(PIPE)
