"""`mmssl search`: the nearest samples of an embedded folder, and their page."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import mmssl
from mmssl.data.shards.index import ShardIndex
from tests.pipelines.conftest import World


@pytest.fixture(scope="module")
def embedded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "embeddings"
    assert world.mmssl("embed", world.run, "--shards", world.shards / "test", "--out", out) == 0
    return out


def test_it_finds_what_similarity_finds(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "found.html"
    text = "a seven & <b>two</b>"
    assert world.mmssl("search", embedded, text, "--top", 3, "--modality", "image", "--html", page) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("  ")]
    row = mmssl.load(world.run).encode(text=[text])["text"][0].numpy()
    scores = np.load(embedded / "image.npy") @ row
    keys = (embedded / "keys.txt").read_text().splitlines()
    best = np.argsort(-scores, kind="stable")[:3]
    assert [line[2] for line in lines] == [keys[i] for i in best]
    assert [float(line[1]) for line in lines] == pytest.approx([float(scores[i]) for i in best], abs=1e-4)
    html = page.read_text()
    assert html.count("data:image/") == 3
    assert "a seven &amp; &lt;b&gt;two&lt;/b&gt;" in html
    assert "<b>two" not in html


def test_a_picture_finds_itself_first(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index = ShardIndex.open([str(world.shards / "test")])
    fields = index.read(5, {"png", "jpg"}).fields
    extension = next(iter(fields))
    (tmp_path / f"photo.{extension}").write_bytes(BytesIO(fields[extension]).getvalue())
    assert world.mmssl("search", embedded, tmp_path / f"photo.{extension}", "--top", 2) == 0
    out = capfd.readouterr().out
    assert out.index("image:") < out.index(index.key(5)) < out.index("text:")
    assert f"1  1.0000  {index.key(5)}" in out


@pytest.mark.parametrize(
    ("query", "arguments", "code", "wanted"),
    [
        ("photo.jpg", [], 3, "there is no such file"),
        ("README.md", [], 3, "no modality reads .md"),
        ("a cat", ["--modality", "sound"], 2, "allowed: image, text"),
        ("", [], 3, "got the query '': missing: got '', wanted a caption"),
        ("cat", ["--as", "image"], 3, "got the query 'cat': it does not exist; wanted a file of image"),
    ],
)
def test_what_cannot_be_searched_is_told(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], query: str, arguments: list[str], code: int, wanted: str
) -> None:  # fmt: skip
    assert world.mmssl("search", embedded, query, *arguments) == code
    assert wanted in " ".join(capfd.readouterr().err.split())


def test_another_model_is_refused(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert world.pretrain(f"output={tmp_path}", "name=other", "seed=1", "duration=3 steps", "evaluators={}") == 0
    assert world.mmssl("search", embedded, "a cat", "--model", tmp_path / "other") == 4
    assert "holds embeddings of another model" in capfd.readouterr().err
    manifest = json.loads((embedded / "manifest.json").read_text())
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest | {"checkpoint": "gone"}))
    assert world.mmssl("search", tmp_path / "moved", "a cat") == 3
    assert "name it by --model" in " ".join(capfd.readouterr().err.split())


def test_an_index_is_measured_and_used_until_the_folder_is_embedded_again(
    world: World, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("usearch", reason="the extra `index` is not installed")
    folder = tmp_path / "embedded"
    shutil.copytree(embedded, folder)
    assert world.mmssl("index", folder, "--threads", 1) == 0
    assert "image: 32 rows, recall@10 1.0000 (image, held out, 3 queries), 1.0000 (text, " in capfd.readouterr().out
    searches = []
    for exact in ([], ["--exact"]):
        assert world.mmssl("search", folder, "a seven", *exact) == 0
        searches.append(capfd.readouterr().out)
    assert searches[0] == searches[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays"]["image.npy"] = "of other rows"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert world.mmssl("search", folder, "a seven") == 3
    assert "is an index of other embeddings than those in the folder" in " ".join(capfd.readouterr().err.split())
    assert world.mmssl("search", folder, "a seven", "--exact") == 0
