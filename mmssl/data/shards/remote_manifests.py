"""What the manifests beside remote shards say of the formats of their members: each is fetched once, and cached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.shards.manifests import FORMATS_OF_TYPES, SET_TYPE_FILE, Formats
from mmssl.data.shards.patience import Absent, Refused
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.storage import PIPE
from mmssl.data.shards.writer import MANIFEST, parse_manifest

_MAX_BYTES = 256 << 20
_LAYOUT = re.compile(r"(0|[1-9]\d*)\.tar")
"""Names of shards in CLIP_benchmark's layout."""


def read_remote_formats(urls: Sequence[str], remote: Remote) -> tuple[Formats, ...]:
    """The formats of the members of each shard, as the `manifest.json` in its folder or the one above says; empty: nothing says.

    Of shards 0.tar, 1.tar, ... without one, the `dataset_type.txt` above their folder counts: CLIP_benchmark's layout. Files of
    these names of other programs count for nothing, and so do those that the storage refuses.

    Raises:
        DataError: the storage fails.
    """

    @cache
    def listed(folder: str, query: str) -> tuple[frozenset[str], Formats]:
        data = fetch_file(f"{folder}/{MANIFEST}{query}", remote)
        try:
            manifest = parse_manifest(data or b"", Path(), folder)
        except DataError:
            return frozenset(), {}
        return frozenset(shard.path for shard in manifest.shards), manifest.formats

    @cache
    def of_layout(folder: str, query: str) -> Formats:
        kind = fetch_file(f"{folder}/{SET_TYPE_FILE}{query}", remote)
        return FORMATS_OF_TYPES.get((kind or b"").decode(errors="replace").strip(), {})

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
        if len(parts) > 2 and _LAYOUT.fullmatch(parts[-1]):
            return of_layout(f"{scheme}://{'/'.join(parts[:-2])}", mark + secrets)
        return {}

    return tuple(find(url) for url in urls)


def fetch_file(url: str, remote: Remote) -> bytes | None:
    """A file as it is in the storage now, from the cache if its version is there; None: there is none, or it is very large.

    Raises:
        DataError: the storage fails.
    """
    try:
        facts = remote.storage.facts(url)
        if facts.size is None or facts.size > _MAX_BYTES:
            return None
        key = f"manifest\0{url}\0{facts.size}\0{facts.version}"
        with remote.cache.open(key, lambda sink: remote.storage.copy(url, sink, facts.size), facts.size) as file:
            return file.read()
    except (Absent, Refused):  # buckets without list permission refuse missing files
        return None
