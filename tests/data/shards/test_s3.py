"""Shards in an S3 bucket, of a real server on this machine, also through a connection that fails on purpose."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.shards.cache import Cache
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.patience import Patience
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.sidecar import sidecar_path, write_sidecar
from mmssl.data.shards.storage import Storage
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.mixture import BlockShuffleConfig
from mmssl.data.stream.sources import Source
from tests.data.make import write

HOW = "install the extra `tests-s3`: pip install '.[tests-s3]'"
pytest.importorskip("s3fs", reason=HOW)
moto = pytest.importorskip("moto.server", reason=HOW)

COUNTS = [40, 9, 23]
SLICE = 4
URLS = "s3://shards/a/{0..2}.tar"


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server at `port`.

    Attributes:
        faults: path -> what the next GETs of it meet, one after the other: a status, "cut" (the connection ends in the body),
            "short" (fewer bytes than wanted, as if these were all), "flip" (one wrong byte), "late" (after a tenth of a second).
        gets: path -> GETs of it.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = port
        self.faults: dict[str, deque[str]] = {}
        self.gets: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def pass_on(self) -> None:
        path = self.path.split("?")[0]
        faults = self.server.faults.get(path)
        fault = faults.popleft() if faults and self.command == "GET" else "ok"
        if self.command == "GET":
            self.server.gets[path] += 1
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if fault.isdigit():
            self.answer(int(fault), [], b"")
            return
        if fault == "late":
            time.sleep(0.1)
        far = http.client.HTTPConnection("127.0.0.1", self.server.port)
        far.request(self.command, self.path, body, dict(self.headers))
        answer = far.getresponse()
        data = answer.read()
        far.close()
        if fault == "short":
            data = data[: len(data) // 2]
        if fault == "flip":
            data = data[:512] + bytes([data[512] ^ 1]) + data[513:]  # a digit of the first sample's label
        self.answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
        told = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", told)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    do_GET = do_HEAD = do_PUT = do_POST = pass_on


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far")
    for number, count in enumerate(COUNTS):
        samples = [
            {"__key__": f"{i:03d}", "cls": str(100 * number + i).encode(), "txt": b"x" * 700} for i in range(count)
        ]
        write_sidecar(write(folder / f"{number}.tar", samples))
    return folder


@pytest.fixture(scope="module")
def bucket(local: Path) -> Iterator[int]:
    """Port of a server with the shards and their sidecars in the bucket `shards`, put there by the client that reads them."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        port = server.get_host_and_port()[1]
        environment(patch, port)
        client = Storage()._client(URLS)
        client.mkdir("shards")
        for path in local.iterdir():
            client.pipe_file(f"shards/a/{path.name}", path.read_bytes())
        yield port
    server.stop()


def environment(patch: pytest.MonkeyPatch, port: int) -> None:
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def proxy(bucket: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(bucket) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        environment(monkeypatch, server.server_address[1])
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    slept: list[float] = []
    patience = Patience(pause=1, longest=8, deadline=20, timeout=5, sleep=slept.append, clock=lambda: sum(slept))
    return Remote(Cache(tmp_path / "cache", 10**8), Storage(patience), SLICE)


def order(index: ShardIndex, steps: int = 18, on_error: str = "raise") -> list[list[int]]:
    stream = TrainStream(
        [Source(index)],
        {"label": LabelConfig().build("label")},
        {"label": {"value": 1}},
        batch_size=8,
        seed=0,
        on_error=on_error,  # type: ignore[arg-type]
        shuffle=BlockShuffleConfig(lanes=4, slice=SLICE, mixed=2),
        ahead=0,  # one thread: the time of `remote` passes by its waiting
    )
    batches = [next(stream)["label"]["value0"].tolist() for _ in range(steps)]
    stream.close()
    return batches


def test_a_bucket_is_read_by_slices_with_the_sidecars_beside_the_shards(
    proxy: Proxy, remote: Remote, local: Path
) -> None:
    index = ShardIndex.open([URLS], remote=remote)
    assert index.digest == ShardIndex.open([local]).digest
    assert dict(proxy.gets) == {f"/shards/a/{number}.tar.index.npz": 1 for number in range(3)}
    assert order(index) == order(ShardIndex.open([local]))
    slices = sum(max(1, round(count / SLICE)) for count in COUNTS)
    assert sum(proxy.gets[f"/shards/a/{number}.tar"] for number in range(3)) == slices


@pytest.mark.parametrize("fault", ["503", "500", "429", "cut", "short", "flip", "late"])
def test_a_connection_that_fails_changes_nothing_in_the_stream(
    proxy: Proxy, remote: Remote, local: Path, fault: str
) -> None:
    for number in range(3):
        retried = fault != "late"
        proxy.faults[f"/shards/a/{number}.tar"] = deque([fault, "late", fault] if retried else ["late"] * 2)
        if fault != "flip":
            proxy.faults[f"/shards/a/{number}.tar.index.npz"] = deque([fault] * (2 if retried else 1))
    index = ShardIndex.open([URLS], remote=remote)
    assert order(index) == order(ShardIndex.open([local]))
    assert not any(map(len, proxy.faults.values())), "each fault was met"


@pytest.mark.parametrize("fault", ["503", "cut", "short"])
def test_a_connection_that_goes_on_failing_ends_the_run_and_skips_nothing(
    proxy: Proxy, remote: Remote, fault: str
) -> None:
    index = ShardIndex.open([URLS], remote=remote)
    proxy.faults = {f"/shards/a/{number}.tar": deque([fault] * 1000) for number in range(3)}
    words = r"^s3://shards/a/\d\.tar, byte \d+ to \d+: attempt 5 failed: .*; s3://shards has failed for .*No sample was skipped"
    with pytest.raises(DataError, match=words):
        order(index, on_error="substitute")


def test_each_attempt_is_one_request(proxy: Proxy, remote: Remote) -> None:
    """The client's own retries would know neither the deadline nor a stop."""
    size = remote.storage.facts("s3://shards/a/0.tar").size
    assert size is not None
    proxy.faults["/shards/a/0.tar"] = deque(["503"] * 4)
    assert len(remote.storage.read("s3://shards/a/0.tar", 0, 512, size)) == 512
    assert proxy.gets["/shards/a/0.tar"] == 5
    assert remote.storage.patience.clock() == 1 + 2 + 4 + 8


def test_what_is_not_there_and_what_is_refused_fail_at_once(
    proxy: Proxy, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("s3://shards/a/7.tar", "s3://nowhere/a/0.tar"):
        with pytest.raises(DataError, match=rf"{url}, its size: not found"):
            ShardIndex.open([url], remote=remote)
    proxy.faults["/shards/a/0.tar"] = deque(["403"])
    with pytest.raises(DataError, match=r"0\.tar, byte 0 to 9: access refused.*check the credentials"):
        remote.storage.read("s3://shards/a/0.tar", 0, 9, 99)
    assert remote.storage.patience.clock() == 0


def test_without_sidecars_each_shard_is_fetched_once(bucket: int, proxy: Proxy, remote: Remote, local: Path) -> None:
    client = remote.storage._client(URLS)
    for path in local.glob("*.tar"):
        client.pipe_file(f"shards/bare/{path.name}", path.read_bytes())
    index = ShardIndex.open(["s3://shards/bare/{0..2}.tar"], remote=remote)
    assert order(index) == order(ShardIndex.open([local]))
    assert all(proxy.gets[f"/shards/bare/{number}.tar"] == 1 for number in range(3))
    assert sidecar_path(local / "0.tar").exists()
