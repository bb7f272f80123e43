"""What the manifests beside remote shards say of the formats of their members: each is fetched once, and cached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.manifests import Formats
from mmssl.data.shards.patience import Absent, Refused
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.storage import PIPE
from mmssl.data.shards.writer import MANIFEST, parse_manifest

_MAX_BYTES = 256 << 20


def read_remote_formats(urls: Sequence[str], remote: Remote) -> tuple[Formats, ...]:
    """The formats of the members of each shard, as the `manifest.json` in its folder or the one above says; empty: nothing says.

    Files of that name of other programs count for nothing, and so do those that the storage refuses.

    Raises:
        DataError: the storage fails.
    """

    @cache
    def listed(folder: str, query: str) -> tuple[frozenset[str], Formats]:
        data = _fetch(f"{folder}/{MANIFEST}{query}", remote)
        try:
            manifest = parse_manifest(data or b"", Path(), folder)
        except DataError:
            return frozenset(), {}
        return frozenset(shard.path for shard in manifest.shards), manifest.formats

    def find(url: str) -> Formats:
        if url.startswith(PIPE):
            return {}
        address, mark, secrets = url.partition("?")
        scheme, _, path = address.partition("://")
        parts = path.split("/")
        for depth in (1, 2):
            folder, name = parts[:-depth], "/".join(parts[-depth:])
            if folder:
                shards, formats = listed(f"{scheme}://{'/'.join(folder)}", mark + secrets)
                if name in shards:
                    return formats
        return {}

    return tuple(find(url) for url in urls)


def _fetch(url: str, remote: Remote) -> bytes | None:
    """A file as it is in the storage now, from the cache if its version is there; None: there is none, or it is very large."""
    try:
        facts = remote.storage.facts(url)
        if facts.size is None or facts.size > _MAX_BYTES:
            return None
        key = f"manifest\0{url}\0{facts.size}\0{facts.version}"
        with remote.cache.open(key, lambda sink: remote.storage.copy(url, sink, facts.size), facts.size) as file:
            return file.read()
    except (Absent, Refused):  # buckets without list permission refuse missing files
        return None
