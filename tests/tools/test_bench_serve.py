"""The benchmark of a server asks as often as it says, on 127.0.0.1, and writes its figures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bench_serve
import pytest

from tests.tools.conftest import RunTool


class Answers(BaseHTTPRequestHandler):
    """Answers every request with its body; 500 for the word "fail"."""

    protocol_version = "HTTP/1.1"
    asked: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(body)
        self.send_response(500 if body == b"fail" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def answering() -> Iterator[tuple[int, list[bytes]]]:
    handler = type("Handler", (Answers,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], handler.asked  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def test_a_load_is_bounded_and_all_answers_count() -> None:
    with answering() as (port, asked):
        figures = bench_serve.load(port, "/embed/text", [b"a", b"b"], 3, 20, 30.0)
        assert figures["requests"] == 20
        assert sorted(asked) == [b"a"] * 10 + [b"b"] * 10
        assert 0 < figures["p50"] <= figures["p95"]
        assert bench_serve.load(port, "/", [b"a"], 1, 1, 30.0)["requests"] == 1
        with pytest.raises(SystemExit, match="1 of 1 answers failed: \\[500\\]"):
            bench_serve.load(port, "/", [b"fail"], 1, 1, 30.0)


def test_figures(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def server(folder: Path, batch: int, threads: int) -> Iterator[int]:
        with answering() as (port, _):
            yield port

    monkeypatch.setattr(bench_serve, "server", server)
    arguments = (tmp_path, "--clients", 2, "--requests", 10, "--rounds", 2, "--json", tmp_path / "serve.json")
    run_tool("bench_serve", *arguments)
    figures = json.loads((tmp_path / "serve.json").read_text())
    assert set(figures["medians"]) == {"batches", "alone"}
    assert [one["requests"] for one in figures["rounds"]["alone"]] == [10, 10]
    assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
