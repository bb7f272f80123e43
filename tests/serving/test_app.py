"""A server, asked through its application: answers beside direct ones, limits, time-outs, headers, and nothing of the machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.evaluation.embeddings.search import EmbeddedFolder
from mmssl.serving.limits import Limits
from tests.evaluation.world import COLOURS, png
from tests.serving.conftest import SAMPLES, Served, knowing

Serve = Callable[..., Served]
RED = png(COLOURS["red"])


def test_a_text_finds_what_direct_search_finds(serve: Serve, embedded: EmbeddedFolder) -> None:
    served = serve()
    answer = served.client.post("/search/words?top=3&in=picture", content="a red picture")
    row = knowing().encode(words=["a red picture"])["words"][0].numpy()
    hits = embedded.search("picture", row, 3)
    assert answer.status_code == 200
    assert answer.json()["query"] == "words"
    found = answer.json()["found"]
    assert list(found) == ["picture"]
    assert [one["sample"] for one in found["picture"]] == [hit.sample for hit in hits]
    assert [one["score"] for one in found["picture"]] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert found["picture"][0]["key"] == "sample001"
    assert set(found["picture"][0]) == {"key", "sample", "score"}


def test_a_picture_finds_samples_of_all_modalities_and_shows_them(serve: Serve) -> None:
    found = serve().client.post("/search/picture?show=true", content=RED).json()["found"]
    assert {name: len(samples) for name, samples in found.items()} == {"picture": 10, "words": 10}
    first = found["picture"][0]
    assert first["text"] == f"<b>picture {first['sample']} 0</b>"
    assert first["sample"] % len(COLOURS) == list(COLOURS).index("red")


def test_embeddings_are_those_of_the_model(serve: Serve) -> None:
    client = serve().client
    texts = ["red", "a blue picture"]
    wanted = knowing().encode(words=texts)["words"].numpy()
    assert client.post("/embed/words", content="red").json()["embeddings"] == pytest.approx(wanted[:1], abs=1e-6)
    several = client.post("/embed/words", json={"inputs": texts}).json()
    np.testing.assert_allclose(several["embeddings"], wanted, atol=1e-6)
    coded = [base64.b64encode(png(COLOURS[name])).decode() for name in ("red", "blue")]
    pictures = client.post("/embed/picture", json={"inputs": coded}).json()["embeddings"]
    wanted = knowing().encode(picture=[png(COLOURS["red"]), png(COLOURS["blue"])])["picture"].numpy()
    np.testing.assert_allclose(pictures, wanted, atol=1e-6)


def test_requests_that_wait_share_a_forward_pass(serve: Serve) -> None:
    served = serve()
    model, sizes = served.service._model.embedding, []
    began, go = threading.Event(), threading.Event()
    embed = model.embed

    def slow(name: str, views: Any) -> Any:
        sizes.append(len(views))
        began.set()
        assert go.wait(10)
        return embed(name, views)

    model.embed = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(served.client.post, "/embed/words", content="red")
        assert began.wait(10)
        rest = [threads.submit(served.client.post, "/embed/words", content=text) for text in ("blue", "red", "green")]
        while len(served.service.batcher) < 3:  # ends with the requests' own time-out
            assert not any(one.done() for one in rest)
        go.set()
        rows = [one.result(10).json()["embeddings"][0] for one in (first, *rest)]
    assert sizes == [1, 3]
    np.testing.assert_allclose(rows, knowing().encode(words=["red", "blue", "red", "green"])["words"], atol=1e-6)
    text = served.client.get("/metrics").text
    assert 'mmssl_batch_inputs_bucket{modality="words",le="1.0"} 1' in text
    assert 'mmssl_batch_inputs_bucket{modality="words",le="4.0"} 2' in text
    assert 'mmssl_requests_total{route="/embed/{modality}",status="200"} 4' in text


SMALL = Limits(file_bytes=1000, text_bytes=30, inputs=3, top=20)


@pytest.mark.parametrize(
    ("path", "body", "status", "wanted"),
    [
        ("/search/words", b"", 422, "got an empty body"),
        ("/search/words", b" ", 422, "got words that cannot be used: missing: got ' ', wanted a caption; send a sentence"),
        ("/search/words", b"\xff", 422, "got words that is not UTF-8: invalid start byte at byte 0"),
        ("/search/words", b"x" * 31, 413, "got a body of 31 bytes, wanted at most 30"),
        ("/search/picture", b"x" * 1001, 413, "got a body of 1,001 bytes, wanted at most 1,000"),
        ("/search/picture", b"no picture", 422, "got picture that cannot be used: undecodable: "),
        pytest.param("/search/picture", RED[:60], 422, "got picture that cannot be used: ", id="cut"),
        ("/search/word", b"red", 404, "no query of the modality 'word', did you mean 'words'?, wanted one of: picture, words"),
        ("/search/words?in=sound", b"red", 422, "in: got 'sound', wanted one of: picture, words"),
        ("/search/words?top=0", b"red", 422, "top: got '0': input should be greater than or equal to 1"),
        ("/search/words?top=21", b"red", 422, "top: got '21': input should be less than or equal to 20"),
        ("/search/words?top=few", b"red", 422, "top: got 'few': input should be a valid integer"),
        ("/embed/label", b"3", 404, "no query of the modality 'label'"),
        ("/nothing", b"", 404, "not found: wanted POST /search/MODALITY"),
        ("/health", b"", 405, "method not allowed: wanted POST"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_told(serve: Serve, path: str, body: bytes, status: int, wanted: str) -> None:
    answer = serve(SMALL).client.post(path, content=body)
    assert answer.json()["error"].startswith(wanted)
    assert answer.status_code == status
    assert "/root" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "status", "wanted"),
    [
        ("/embed/words", b"{", 422, "got a body that is not JSON, wanted"),
        ("/embed/words", b"[" * 500, 422, "got a body that is not JSON, wanted"),
        ("/embed/words", b'["red"]', 422, 'got other JSON, wanted {"inputs": [...]} with texts'),
        ("/embed/words", b'{"inputs": []}', 422, "got other JSON"),
        ("/embed/words", b'{"inputs": [3]}', 422, "got other JSON"),
        ("/embed/words", b'{"inputs": ["a"], "x": 1}', 422, "got other JSON"),
        ("/embed/words", b'{"inputs": ["a", "b", "c", "d"]}', 422, "got 4 inputs, wanted at most 3"),
        ("/embed/words", json.dumps({"inputs": ["x" * 31]}).encode(), 413, "got 31 bytes of words, wanted at most 30"),
        ("/embed/picture", b'{"inputs": ["red"]}', 422, "got an input that is not Base64"),
        ("/embed/picture", b'{"inputs": ["' + b"A" * 1400 + b'"]}', 413, "got 1,050 bytes of picture"),
    ],
)
def test_lists_that_cannot_be_answered_are_told(serve: Serve, path: str, body: bytes, status: int, wanted: str) -> None:
    answer = serve(SMALL).client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["error"].startswith(wanted)
    assert answer.status_code == status


def test_a_body_of_unsaid_length_is_cut_off(serve: Serve) -> None:
    answer = serve(SMALL).client.post("/search/picture", content=(b"x" * 100 for _ in range(1000)))
    assert (answer.status_code, answer.json()["error"]) == (413, "got a body of more than 1,000 bytes: send less")


def test_an_answer_that_takes_too_long_is_given_up(serve: Serve) -> None:
    go = threading.Event()

    def stuck(row: np.ndarray, top: int) -> list[Any]:
        go.wait(10)
        return []

    served = serve(Limits(seconds=0.1), picture=stuck)
    try:
        answer = served.client.post("/search/words", content="red")
        assert (answer.status_code, answer.json()["error"][:33]) == (504, "the answer took longer than 0.1 s")
    finally:
        go.set()
    assert served.client.get("/health").status_code == 200


def test_a_server_that_fails_says_so_and_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken(row: np.ndarray, top: int) -> list[Any]:
        raise OSError("/secret/place is gone")

    served = serve(picture=broken)
    answer = served.client.post("/search/words", content="red")
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "the server failed on this request; its log says why"},
    )
    assert "/secret/place is gone" in caplog.text
    assert served.client.post("/search/words?in=words", content="red").status_code == 200


def test_one_request_too_many_is_told_to_come_again(serve: Serve) -> None:
    began, go = threading.Event(), threading.Event()

    def stuck(row: np.ndarray, top: int) -> list[Any]:
        began.set()
        go.wait(10)
        return []

    served = serve(Limits(requests=1), picture=stuck)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(served.client.post, "/search/words", content="red")
        assert began.wait(10)
        answer = served.client.post("/embed/words", content="red")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert served.client.get("/health").status_code == 200, "it still says how it is"
        go.set()
        assert first.result(10).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_of_others_are_refused(serve: Serve, headers: dict[str, str], status: int) -> None:
    assert serve().client.post("/embed/words", content="red", headers=headers).status_code == status


def test_health_says_what_can_be_asked(serve: Serve, embedded: EmbeddedFolder) -> None:
    answer = serve().client.get("/health")
    said = answer.json()
    assert said["status"] == "ok"
    assert said["queries"] == ["picture", "words"]
    assert said["searched"] == {"picture": SAMPLES, "words": embedded.manifest["rows"]["words"]}
    assert str(embedded.folder) not in answer.text


class Page(HTMLParser):
    """Collects scripts, handlers and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.inline, self.loaded = [], []  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.loaded += [value for name, value in given.items() if name in ("src", "href")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


def test_the_page_loads_from_here_only(serve: Serve) -> None:
    client = serve().client
    answer = client.get("/")
    page = Page()
    page.feed(answer.text)
    assert page.inline == []
    assert sorted(page.loaded) == ["data:,", "page.css", "page.js"]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
        part = client.get(f"/{name}")
        assert part.headers["content-type"].startswith(kind)
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "http"):
        assert word not in client.get("/page.js").text
    assert client.get("/../app.py").status_code == 404
    assert client.get("/app.py").status_code == 404


def test_the_files_of_the_page_are_here() -> None:
    import mmssl.serving

    folder = Path(mmssl.serving.__file__ or "").parent
    assert {path.name for path in folder.glob("page.*")} == {"page.html.jinja", "page.css", "page.js"}
