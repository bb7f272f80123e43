from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.data.shards.sidecar import sidecar_path
from mmssl.data.shards.sidecars import check_sidecars, write_sidecars
from pipelines import cli
from pipelines.command import guarded
from tests.data.make import write
from tests.data.servers import Server, serve


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.tar", [{"__key__": f"{i}", "cls": b"1"} for i in range(4 + number)])
    return folder


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with serve() as server:
        server.files |= {f"/{path.name}": path.read_bytes() for path in shards.iterdir()}
        yield server


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return CacheConfig(folder=tmp_path / "cache", timeout=1.0, deadline=0.0).build()


def test_local(shards: Path, remote: Remote) -> None:
    counts: list[tuple[int, int]] = []
    with pytest.raises(DataError, match=r"3 of 3 shards have no valid sidecar:\n.*0\.tar: no sidecar"):
        check_sidecars([str(shards)], remote)
    assert write_sidecars([str(shards)], remote, progress=lambda *done: counts.append(done)) == 3
    assert counts == [(1, 3), (2, 3), (3, 3)]
    assert check_sidecars([str(shards)], remote) == 3
    with np.load(sidecar_path(shards / "1.tar")) as file:
        arrays = dict(file)
    arrays["offset"] = arrays["offset"].copy()
    arrays["offset"][[0, 1]] = arrays["offset"][[1, 0]]
    np.savez(sidecar_path(shards / "1.tar"), **arrays)
    sidecar_path(shards / "2.tar").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"2 of 3 (.|\n)*1\.tar\.index\.npz disagrees with the shard: .*\n.*2\.tar"):
        check_sidecars([str(shards)], remote)
    with pytest.raises(DataError, match="are written beside them"):
        write_sidecars([str(shards)], remote, shards)


def test_remote(server: Server, remote: Remote, shards: Path, tmp_path: Path) -> None:
    urls = [f"{server.url}/{{0..2}}.tar?token=x"]
    with pytest.raises(DataError, match=r"3 of 3 .*\n.*/0\.tar: no valid sidecar"):
        check_sidecars(urls, remote)
    assert write_sidecars(urls, remote, tmp_path / "out") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i}.tar.index.npz" for i in range(3)]
    assert max(server.gets()[f"/{i}.tar"] for i in range(3)) == 1
    server.files |= {f"/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert check_sidecars(urls, remote) == 3
    other = CacheConfig(folder=tmp_path / "other").build()
    assert ShardIndex.open(urls, remote=other).digest == ShardIndex.open([shards]).digest
    server.files["/1.tar.index.npz"] = server.files["/1.tar.index.npz"][:-9]
    with pytest.raises(DataError, match=r"1 of 3 (.|\n)*/1\.tar: no valid sidecar"):
        check_sidecars(urls, remote)
    with pytest.raises(DataError, match=r"two shards would write .*x\.tar\.index\.npz"):
        write_sidecars([f"{server.url}/{{a,b}}/x.tar"], remote, tmp_path)
    with pytest.raises(DataError, match=r"1 of 1 shards cannot be indexed:\n.*/9\.tar"):
        write_sidecars([f"{server.url}/9.tar"], remote)


def test_command_line(server: Server, shards: Path, tmp_path: Path) -> None:
    def mmssl(*arguments: object) -> int:
        return guarded(cli.full(), ["shards", "index", *map(str, arguments)])

    assert mmssl(shards, "--check") == 3
    assert mmssl(shards) == 0
    assert mmssl(shards, "--check") == 0
    assert mmssl(f"{server.url}/{{0..2}}.tar", "--cache", tmp_path / "cache", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    command = f"pipe:cat {shards}/0.tar"
    assert mmssl(command, "--cache", tmp_path / "cache") == 3
    assert mmssl(command, "--cache", tmp_path / "cache", "--allow-pipe") == 0
