from __future__ import annotations

import itertools
import json
import logging
import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import DecodeError
from mmssl.data.samples import load
from mmssl.data.shards.cache import Cache
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.paths import expand, expand_urls
from mmssl.data.shards.patience import Absent, Patience
from mmssl.data.shards.remote import CacheConfig, Remote, RemoteReader
from mmssl.data.shards.sidecar import sidecar_path, write_sidecar
from mmssl.data.shards.storage import Storage
from mmssl.data.shards.writer import Manifest, write_shard
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.formats import check_formats
from mmssl.data.stream.mixture import BlockShuffleConfig
from mmssl.data.stream.sources import Source
from mmssl.data.stream.workers import Workers
from tests.data.make import write
from tests.data.servers import Server, serve

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
COUNTS = [40, 9, 23]
SLICE = 4


class Pauses:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def clock(self) -> float:
        return sum(self.slept)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def storage(pauses: Pauses) -> Storage:
    return Storage(Patience(pause=1, longest=8, deadline=20, timeout=0.2, sleep=pauses.sleep, clock=pauses.clock))


@pytest.fixture
def remote(storage: Storage, tmp_path: Path) -> Remote:
    return Remote(Cache(tmp_path / "cache", 10**8), storage, SLICE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far")
    for number, count in enumerate(COUNTS):
        samples = [
            {"__key__": f"{i:03d}", "cls": str(100 * number + i).encode(), "txt": b"x" * 700} for i in range(count)
        ]
        write(folder / f"{number}.tar", samples)
    return folder


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with serve() as server:
        server.files |= {f"/a/{path.name}": path.read_bytes() for path in sorted(shards.glob("*.tar"))}
        yield server


def urls(server: Server) -> list[str]:
    return [f"{server.url}/a/{{0..2}}.tar"]


def labels(index: ShardIndex) -> list[int]:
    return [int(sample.fields["cls"]) for sample in index]


def beside(server: Server, shards: Path) -> None:
    """Put a sidecar beside each shard."""
    for path in shards.glob("*.tar"):
        server.files[f"/a/{path.name}.index.npz"] = write_sidecar(path).read_bytes()
        sidecar_path(path).unlink()


MANIFESTS = {"/a/manifest.json", "/manifest.json", "/a/dataset_type.txt", "/dataset_type.txt"}
"""What is asked for, and is not there."""
EXPECTED = [100 * number + i for number, count in enumerate(COUNTS) for i in range(count)]


def test_remote_shards_are_indexed_once_and_are_those_of_the_disk(server: Server, remote: Remote, shards: Path) -> None:
    index = ShardIndex.open(urls(server), remote=remote)
    assert labels(index) == EXPECTED
    local = ShardIndex.open([shards])
    assert (index.digest, index.labels, index.identity(50)) == (local.digest, local.labels, local.identity(50))
    assert index.origin(41).shard == f"{server.url}/a/1.tar"
    assert server.gets()["/a/0.tar"] == 1  # what was fetched for the index serves all reads
    server.log.clear()
    again = ShardIndex.open(urls(server), remote=remote)
    assert again.digest == index.digest
    assert server.gets().keys() == MANIFESTS


def test_manifests_beside_remote_shards_say_what_their_texts_are(
    server: Server, remote: Remote, tmp_path: Path, storage: Storage
) -> None:
    """In the folder of the shards or the one above; fetched once."""
    captions = [{"__key__": f"{i}", "txt": b"one cat\ntwo cats"} for i in range(4)]
    record = write_shard(tmp_path, "lines/0.tar", 0, 4, captions)
    Manifest(tmp_path, {}, (record,), formats={"txt": "lines"}).write()
    server.files |= {"/b/lines/0.tar": (tmp_path / "lines/0.tar").read_bytes()}
    server.files |= {"/b/manifest.json": (tmp_path / "manifest.json").read_bytes()}
    server.files |= {"/a/manifest.json": b"<html>of something else</html>"}
    address = [f"{server.url}/b/lines/0.tar?token=1"]
    index = ShardIndex.open(address, remote=remote)
    assert index.formats == ({"txt": "lines"},)
    text = {"text": TextConfig().build("text")}
    check_formats(index, text)
    assert len(load(index, 0, text).values["text"]) == 2
    assert check_shards(address, remote=remote).modalities["text"].figures["words"].count == 8
    assert server.gets()["/b/manifest.json"] == 1
    assert ShardIndex.open(urls(server), remote=remote).formats == ({}, {}, {})
    server.secret = "/b/manifest.json"
    assert ShardIndex.open(address, remote=Remote(Cache(tmp_path / "new", 10**8), storage)).formats == ({},)


def test_a_sidecar_saves_fetching_whole_shards(server: Server, remote: Remote, shards: Path) -> None:
    beside(server, shards)
    index = ShardIndex.open([f"{url}?token=1" for url in urls(server)], remote=remote)
    assert server.gets().keys() - MANIFESTS == {f"/a/{i}.tar.index.npz" for i in range(3)}
    assert index.digest == ShardIndex.open([shards]).digest
    server.log.clear()
    index.read(0)
    index.read(2)
    assert len(server.log) == 1  # one slice of four samples
    _, first = server.log[0]
    start, stop = (int(end) for end in first.removeprefix("bytes=").split("-"))
    assert (start, stop + 1) == (0, index.members(SLICE)[0][1] - 512)
    assert labels(index) == EXPECTED
    assert len(server.log) == sum(max(1, round(count / SLICE)) for count in COUNTS)
    ranges = sorted(
        tuple(map(int, r.removeprefix("bytes=").split("-"))) for path, r in server.log if path == "/a/0.tar"
    )
    assert all(b[0] == a[1] + 1 for a, b in itertools.pairwise(ranges))  # no byte comes twice
    assert ranges[-1][1] + 1 == len(server.files["/a/0.tar"])


@pytest.mark.parametrize("damage", ["stale", "cut", "rubbish"])
def test_a_sidecar_that_does_not_fit_is_not_used(server: Server, remote: Remote, shards: Path, damage: str) -> None:
    path = shards / "0.tar"
    data = write_sidecar(shards / "1.tar" if damage == "stale" else path).read_bytes()
    server.files["/a/0.tar.index.npz"] = {"stale": data, "cut": data[:-50], "rubbish": b"<html>"}[damage]
    for sidecar in shards.glob("*.npz"):
        sidecar.unlink()
    assert labels(ShardIndex.open(urls(server), remote=remote)) == EXPECTED
    assert server.gets()["/a/0.tar"] == 1


@pytest.mark.parametrize("fault", ["500", "503", "429", "stall", "short", "close"])
def test_faults_are_retried_with_growing_pauses(
    server: Server, remote: Remote, pauses: Pauses, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["/a/0.tar"] = deque([fault] * 3)
    with caplog.at_level(logging.WARNING):
        index = ShardIndex.open([f"{server.url}/a/0.tar"], remote=remote)
    assert labels(index) == EXPECTED[:40]
    assert sum(pauses.slept) == 1 + 2 + 4
    assert server.gets()["/a/0.tar"] == 4
    assert caplog.text.count("attempt") == 3


@pytest.mark.parametrize("fault", ["500", "stall", "short", "close"])
def test_faults_that_stay_end_the_run_at_the_deadline(server: Server, remote: Remote, shards: Path, fault: str) -> None:
    server.files["/a/0.tar.index.npz"] = write_sidecar(shards / "0.tar").read_bytes()
    sidecar_path(shards / "0.tar").unlink()
    index = ShardIndex.open([f"{server.url}/a/0.tar"], remote=remote)
    server.faults["/a/0.tar"] = deque([fault] * 100)
    message = (
        r"/a/0\.tar, byte \d+ to \d+: attempt 5 failed: .*; http://127\.0\.0\.1:\d+ has failed for 15 s\. No sample was"
    )
    with pytest.raises(DataError, match=message):
        index.read(17)
    modality = {"label": LabelConfig().build("label")}
    stream = TrainStream(index, modality, {"label": {"value": 1}}, batch_size=2, seed=0, on_error="substitute", ahead=0)
    with pytest.raises(DataError, match="No sample was skipped"):  # and nothing takes its place
        next(stream)


def test_what_is_not_there_fails_at_once(server: Server, remote: Remote, pauses: Pauses) -> None:
    with pytest.raises(DataError, match=r"1 of 4 shards cannot be used:\n.*/a/3\.tar.*not found"):
        ShardIndex.open([f"{server.url}/a/{{0..3}}.tar"], remote=remote)
    server.faults["/a/0.tar"] = deque(["403"])
    with pytest.raises(DataError, match=r"refused: .*403"):
        remote.storage.read(f"{server.url}/a/0.tar?secret=1", 0, 10, len(server.files["/a/0.tar"]))
    assert not pauses.slept


def test_a_bucket_that_refuses_what_is_not_there_has_no_sidecars(server: Server, remote: Remote) -> None:
    server.secret = "/a/0.tar.index.npz"
    assert labels(ShardIndex.open(urls(server), remote=remote)) == EXPECTED


def test_secrets_are_not_shown(server: Server, remote: Remote) -> None:
    with pytest.raises(Absent) as caught:
        remote.storage.facts(f"{server.url}/nowhere.tar?token=hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("sizes", [True, False])
def test_servers_without_ranges_or_sizes_give_whole_shards(
    server: Server, remote: Remote, shards: Path, sizes: bool
) -> None:
    beside(server, shards)
    server.ranges, server.sizes = False, sizes
    index = ShardIndex.open(urls(server), remote=remote)
    assert labels(index) == EXPECTED
    assert all(server.gets()[f"/a/{i}.tar"] <= 3 for i in range(3))  # a try by range, then one whole
    server.log.clear()
    assert labels(index) == EXPECTED
    assert not server.log


def test_a_whole_file_cut_short_is_fetched_again(
    server: Server, storage: Storage, tmp_path: Path, pauses: Pauses
) -> None:
    server.ranges = False
    data = server.files["/a/1.tar"]
    server.faults["/a/1.tar"] = deque(["ok", "close", "short", "503"])
    with (tmp_path / "whole").open("w+b") as sink:
        storage.copy(f"{server.url}/a/1.tar", sink, len(data))
    # Half a file looks like an answer to the range, so that the attempt with ranges needs two requests.
    assert (tmp_path / "whole").read_bytes() == data


def test_large_files_come_in_pieces(
    server: Server, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmssl.data.shards.storage._PIECE", 10_000)
    data = server.files["/a/1.tar"]
    server.faults["/a/1.tar"] = deque(["ok", "ok", "close", "ok", "500"])
    with (tmp_path / "whole").open("w+b") as sink:
        storage.copy(f"{server.url}/a/1.tar", sink, len(data))
    assert (tmp_path / "whole").read_bytes() == data
    assert len(server.log) == -(-len(data) // 10_000) + 2  # a failure costs one piece


def test_a_shard_that_changed_is_another(server: Server, remote: Remote) -> None:
    index = ShardIndex.open([f"{server.url}/a/0.tar"], remote=remote)
    server.files["/a/0.tar"] = server.files["/a/1.tar"]
    other = ShardIndex.open([f"{server.url}/a/0.tar"], remote=remote)
    assert labels(other) == EXPECTED[40:49]
    assert labels(index) == EXPECTED[:40]  # from the cache


def test_damaged_shards_are_named_by_their_url(server: Server, remote: Remote) -> None:
    server.files["/a/0.tar"] = server.files["/a/0.tar"][:5000]
    with pytest.raises(DataError, match=rf"1 of 1 .*\n{server.url}/a/0\.tar, byte"):
        ShardIndex.open([f"{server.url}/a/0.tar"], remote=remote)


def damage(remote: Remote, what: bytes) -> int:
    """Change the first such bytes in every file of the cache that has them; returns in how many."""
    files = [path for path in remote.cache.folder.glob("??/*") if what in path.read_bytes()]
    for path in files:
        path.write_bytes(path.read_bytes().replace(what, b"?" * len(what), 1))
    return len(files)


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_cache_is_no_damaged_sample(
    server: Server, remote: Remote, shards: Path, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if not whole:
        beside(server, shards)
    index = ShardIndex.open(urls(server), remote=remote)
    assert labels(index) == EXPECTED
    server.log.clear()
    assert damage(remote, b"x" * 700) > 3 - whole
    again = pickle.loads(pickle.dumps(index))
    assert [int(sample.fields["cls"]) for sample in again if sample.fields["txt"] == b"x" * 700] == EXPECTED
    assert len(server.log) == len(set(server.log)) == sum(max(1, round(count / SLICE)) for count in COUNTS)
    assert "/a/0.tar, byte" in caplog.text


def test_damage_at_the_source_is_fetched_once_more_and_then_a_fault(
    server: Server, remote: Remote, shards: Path
) -> None:
    beside(server, shards)
    data = server.files["/a/1.tar"]
    server.files["/a/1.tar"] = data.replace(b"x" * 700, b"y" * 700, 1)
    index = ShardIndex.open(urls(server), remote=remote)
    server.log.clear()
    with pytest.raises(DecodeError, match="differ from their checksum") as caught:
        index.read(40)
    assert (caught.value.reason, caught.value.field) == ("checksum", "txt")
    assert server.gets() == {"/a/1.tar": 2}
    assert index.read(41).fields["cls"] == b"101"
    server.files["/a/1.tar"] = data  # repaired meanwhile
    assert index.read(40).fields["cls"] == b"100"


def test_other_protocols(remote: Remote, shards: Path) -> None:
    far = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        far.pipe(f"/bucket/{path.name}", path.read_bytes())
        far.pipe(f"/bucket/{path.name}.index.npz", write_sidecar(path).read_bytes())
        sidecar_path(path).unlink()
    index = ShardIndex.open(["memory://bucket/{0..2}.tar"], remote=remote)
    assert labels(index) == EXPECTED
    assert isinstance(index.reader, RemoteReader)
    assert labels(pickle.loads(pickle.dumps(index))) == EXPECTED


def test_protocols_that_are_not_there(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs")

    with pytest.raises(DataError, match="got the scheme 'ftp', wanted one of http, "):
        storage.facts("ftp://host/x.tar")
    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(DataError, match=r"s3://bucket/0\.tar: Install s3fs: pip install 'mmssl\[s3\]'"):
        storage.facts("s3://bucket/0.tar")


def test_lists_of_urls() -> None:
    assert expand_urls(["s3://b/{08..10}-{a,b}.tar"])[:3] == ["s3://b/08-a.tar", "s3://b/08-b.tar", "s3://b/09-a.tar"]
    for shards, message in (
        (["http://h/1.tar", "http://h/{0..1}.tar"], "given twice"),
        (["http://h/1.tar", "local.tar"], "two sources"),
        (["http://h/{0..1.tar"], "balanced braces"),
    ):
        with pytest.raises(DataError, match=message):
            expand_urls(shards)
    with pytest.raises(DataError, match="wanted a local path"):
        expand(["http://h/1.tar"])


def test_commands_run_only_when_allowed(shards: Path, remote: Remote) -> None:
    command = [f"pipe:cat {shards}/{{0..2}}.tar"]
    with pytest.raises(DataError, match=r"data\.allow_pipe: true"):
        ShardIndex.open(command, remote=remote)
    willing = replace(remote, storage=Storage(remote.storage.patience, allow_pipe=True))
    assert labels(ShardIndex.open(command, remote=willing)) == EXPECTED
    with pytest.raises(DataError, match=r"exited with code 1: cat: .*/9\.tar: No such file"):
        ShardIndex.open([f"pipe:cat {shards}/0.tar {shards}/9.tar"], remote=willing)
    assert not list(remote.cache.folder.rglob(".part-*"))


def config(server: Server, tmp_path: Path, **cache: Any) -> DataConfig:
    kept = CacheConfig(folder=tmp_path / "cache", timeout=0.5, **cache)
    return DataConfig(
        shards=(f"{server.url}/a/{{0..2}}.tar",),
        workers=0,
        cache=kept,
        shuffle=BlockShuffleConfig(lanes=4, slice=4, mixed=2),
    )


MODALITIES = {"label": LabelConfig().build("label")}


def test_training_from_the_web_has_every_sample_once(server: Server, tmp_path: Path) -> None:
    stream = config(server, tmp_path).build(MODALITIES, {"label": {"value": 1}}, batch_size=8, seed=0)
    through = [next(stream)["label"]["value0"].tolist() for _ in range(18)]
    stream.close()
    numbers = list(itertools.chain(*through))
    assert sorted(numbers[:72]) == sorted(numbers[72:]) == EXPECTED
    parts = []
    for rank in range(2):
        sources = config(server, tmp_path).open()
        half = TrainStream(
            sources,
            MODALITIES,
            {"label": {"value": 1}},
            batch_size=8,
            seed=0,
            shuffle=BlockShuffleConfig(lanes=4, slice=4, mixed=2),
            workers=Workers(2, start_method="fork"),
            rank=rank,
            world=2,
        )
        parts.append([next(half)["label"]["value0"].tolist() for _ in range(18)])
        half.close()
    assert [a + b for a, b in zip(*parts, strict=True)] == through


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_clean_worker_processes_read_near_and_far_sources(
    server: Server, tmp_path: Path, shards: Path, shuffle: str
) -> None:
    write(tmp_path / "near.tar", [{"__key__": f"{i:03d}", "cls": str(1000 + i).encode()} for i in range(24)])
    beside(server, shards)
    sources = {
        "near": {"shards": [str(tmp_path / "near.tar")], "weight": 1.0},
        "far": {"shards": urls(server), "weight": 2.0},
    }
    batches = []
    for workers in (0, 2):  # by the fork server
        folder = str(tmp_path / f"cache{workers}")
        kinds = {"global": {"kind": "global"}, "block": {"kind": "block", "lanes": 2, "slice": 4, "mixed": 2}}
        values = {"sources": sources, "workers": workers, "cache": {"folder": folder}, "shuffle": kinds[shuffle]}
        data = DataConfig.model_validate_json(json.dumps(values))
        assert data.start_method == "forkserver"
        stream = data.build(MODALITIES, {"label": {"value": 1}}, batch_size=12, seed=0)
        batches.append([next(stream)["label"]["value0"].tolist() for _ in range(9)])
        stream.close()
    assert batches[0] == batches[1]
    far = sum(number < 1000 for number in itertools.chain(*batches[1]))
    assert far == stream.drawn()["far"].samples
    assert 60 < far < 80


def test_slices_are_fetched_ahead_and_once_only(server: Server, tmp_path: Path, shards: Path) -> None:
    beside(server, shards)
    stream = config(server, tmp_path, threads=2).build(MODALITIES, {"label": {"value": 1}}, batch_size=8, seed=0)
    server.log.clear()
    for _ in range(27):
        next(stream)
    assert stream._ahead is not None
    stream.close()
    for thread in stream._ahead._threads:
        thread.join(5)
    assert len(server.log) == len(set(server.log)) == sum(max(1, round(count / SLICE)) for count in COUNTS)


def test_a_cache_too_small_for_the_mixing_is_refused(server: Server, tmp_path: Path, shards: Path) -> None:
    beside(server, shards)
    with pytest.raises(DataError, match=r"max_bytes: got 50000, wanted at least \d+ for each process"):
        config(server, tmp_path, max_bytes=50_000).build(MODALITIES, {"label": {"value": 1}}, batch_size=8, seed=0)


def test_a_small_cache_changes_nothing_but_traffic(server: Server, tmp_path: Path, shards: Path) -> None:
    beside(server, shards)
    remote = Remote(Cache(tmp_path / "small", 60_000), Storage(), SLICE)
    index = ShardIndex.open(urls(server), remote=remote)
    stream = TrainStream(
        [Source(index)],
        MODALITIES,
        {"label": {"value": 1}},
        batch_size=8,
        seed=0,
        workers=Workers(2, start_method="fork"),
    )
    numbers = [n for _ in range(9) for n in next(stream)["label"]["value0"].tolist()]
    stream.close()
    assert sorted(numbers) == EXPECTED
    assert remote.cache.used() <= 60_000
    assert index.shard_bytes > 150_000


def test_pixels_of_a_resume_need_only_their_slices(server: Server, tmp_path: Path, shards: Path) -> None:
    beside(server, shards)
    stream = config(server, tmp_path, threads=0).build(MODALITIES, {"label": {"value": 1}}, batch_size=8, seed=0)
    stream.load_state_dict(stream.state_dict() | {"step": 8})
    server.log.clear()
    next(stream)
    assert 1 <= len(server.log) <= 8  # of 18 slices
    stream.close()
