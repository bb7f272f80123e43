"""What the files beside remote shards say of the formats of their members: each is fetched once, and cached."""

from __future__ import annotations

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


def read_remote_formats(urls: Sequence[str], remote: Remote) -> tuple[Formats, ...]:
    """The formats of the members of each shard, as `read_formats` finds them of local ones: by the `manifest.json` in its folder or
    the one above that lists it, and the `dataset_type.txt` in either; empty: nothing says.

    Files of these names of other programs count for nothing, and so do those that the storage refuses.

    Raises:
        DataError: the storage fails.
    """

    @cache
    def listed(address: str) -> tuple[frozenset[str], Formats]:
        data = fetch_file(address, remote)
        try:
            manifest = parse_manifest(data or b"", Path(), address)
        except DataError:
            return frozenset(), {}
        return frozenset(shard.path for shard in manifest.shards), manifest.formats

    @cache
    def of_type(address: str) -> Formats | None:
        kind = fetch_file(address, remote)
        return None if kind is None else FORMATS_OF_TYPES.get(kind.decode(errors="replace").strip(), {})

    def find(url: str) -> Formats:
        types = (of_type(address) for address in _near(url, SET_TYPE_FILE))
        found = next((formats for formats in types if formats is not None), {})
        parts = url.partition("?")[0].split("/")
        for depth, address in enumerate(_near(url, MANIFEST), 1):
            shards, formats = listed(address)
            if "/".join(parts[-depth:]) in shards:
                return {**found, **formats}
        return found

    return tuple(find(url) for url in urls)


def beside_remote(url: str, name: str) -> str | None:
    """Address of a file in the folder of a remote shard; None: the shard is the output of a command."""
    return next(iter(_near(url, name)), None)


def _near(url: str, name: str) -> list[str]:
    """Addresses of a file in the folder of a shard and in the one above; of the output of a command there is none."""
    if url.startswith(PIPE):
        return []
    address, mark, secrets = url.partition("?")
    scheme, _, path = address.partition("://")
    parents = [path.split("/")[:-up] for up in (1, 2)]
    return [f"{scheme}://{'/'.join(folder)}/{name}{mark}{secrets}" for folder in parents if folder]


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
