"""`mmssl serve` as a program: real requests on 127.0.0.1, and its end by signals."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mmssl
from tests.pipelines.conftest import World
from tests.programs import Program

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def embedded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serve") / "embeddings"
    assert world.mmssl("embed", world.run, "--shards", world.shards / "test", "--out", out) == 0
    return out


@contextmanager
def served(embedded: Path, folder: Path) -> Iterator[tuple[Program, int]]:
    with Program("pipelines.serve", embedded, "--port", "0", "--device", "cpu", folder=folder) as program:
        program.until("Ctrl-C ends it", 120)
        found = re.search(r"http://127.0.0.1:(\d+)", program.said())
        assert found
        yield program, int(found[1])


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_answers_as_the_model_does_and_finishes_what_is_asked_when_it_is_stopped(
    world: World, embedded: Path, tmp_path: Path
) -> None:
    with served(embedded, tmp_path) as (program, port):
        status, body = ask(port, "POST", "/embed/text", b"a seven")
        wanted = mmssl.load(world.run).encode(text=["a seven"])["text"].numpy()
        assert status == 200
        np.testing.assert_allclose(json.loads(body)["embeddings"], wanted, atol=1e-5)
        status, body = ask(port, "POST", "/search/text?top=2&in=image&show=true", b"a seven")
        found = json.loads(body)["found"]["image"]
        assert [one["picture"][:11] for one in found] == ["data:image/"] * 2
        scores = np.load(embedded / "image.npy") @ wanted[0]
        assert [one["sample"] for one in found] == np.argsort(-scores, kind="stable")[:2].tolist()
        status, body = ask(port, "GET", "/health")
        assert str(world.folder) not in body.decode()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as half:
            half.sendall(b"POST /embed/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\na se")
            assert ask(port, "GET", "/metrics")[0] == 200
            program.signal(signal.SIGTERM)
            while listens(port):
                pass
            half.sendall(b"ven")
            assert half.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert program.wait(60) == 143, program.said()
        assert "Traceback" not in program.said()


def listens(port: int) -> bool:
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.1", port)) == 0


def test_ctrl_c_ends_it(embedded: Path, tmp_path: Path) -> None:
    with served(embedded, tmp_path) as (program, _):
        program.signal(signal.SIGINT)
        assert program.wait(60) == 130, program.said()
        assert "Traceback" not in program.said()


def test_a_port_that_is_taken_is_told(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert world.mmssl("serve", embedded, "--port", port) == 2
    assert f"--port: cannot listen on 127.0.0.1:{port}: address already in use" in " ".join(
        capfd.readouterr().err.split()
    )
    assert world.mmssl("serve", tmp_path) == 3
    assert "wanted a folder that `mmssl embed` wrote" in " ".join(capfd.readouterr().err.split())


def test_samples_that_are_gone_are_not_shown_and_the_rest_works(world: World, embedded: Path, tmp_path: Path) -> None:
    manifest = json.loads((embedded / "manifest.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in embedded.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"shards": [str(tmp_path / "gone")]}))
    with served(moved, tmp_path) as (program, port):
        assert "answers have keys only" in program.said()
        status, body = ask(port, "POST", "/search/text?top=1&in=image&show=true", b"a seven")
        assert status == 200
        assert set(json.loads(body)["found"]["image"][0]) == {"key", "sample", "score"}
