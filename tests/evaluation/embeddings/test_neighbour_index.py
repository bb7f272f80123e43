"""An index beside exact search: what it finds, what is measured, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.evaluation.embeddings import neighbour_index
from mmssl.evaluation.embeddings.neighbour_index import GraphSettings, build_index, kth_best, open_index
from mmssl.evaluation.embeddings.search import EmbeddedFolder

pytest.importorskip("usearch", reason="the extra `index` is not installed")
ONE = GraphSettings(threads=1)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def folder_of(path: Path, n: int = 600, width: int = 16, digest: str = "a") -> EmbeddedFolder:
    """n pictures with two captions each."""
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((n, width)))
    texts = unit(np.repeat(images, 2, 0) + 0.3 * rng.standard_normal((2 * n, width)))
    for name, rows, owners in (("image", images, np.arange(n)), ("text", texts, np.repeat(np.arange(n), 2))):
        np.save(path / f"{name}.npy", rows)
        np.save(path / f"{name}.samples.npy", owners.astype(np.int64))
    (path / "keys.txt").write_text("".join(f"key {number} é\n" for number in range(n)))
    arrays = {f"{name}.npy": digest for name in ("image", "text")}
    manifest = {"rows": {"image": n, "text": 2 * n}, "what": "unit-norm embeddings", "arrays": arrays}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return EmbeddedFolder.open(path)


def test_it_finds_what_exact_search_finds(tmp_path: Path) -> None:
    embedded = folder_of(tmp_path)
    assert open_index(embedded, "text") is None
    build_index(embedded, "text", GraphSettings(expansion_search=600, threads=1))
    index = open_index(embedded, "text")
    assert index is not None
    images, _ = embedded.rows("image")
    for query in images[:20]:
        exact, found = embedded.search("text", query, 5), index.search(query, 5)
        assert [hit.sample for hit in found] == [hit.sample for hit in exact]
        assert [hit.row for hit in found] == [hit.row for hit in exact]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in exact], abs=1e-6)


def test_samples_count_once_and_all_are_found(tmp_path: Path) -> None:
    embedded = folder_of(tmp_path, n=100)
    build_index(embedded, "text", ONE)
    index = open_index(embedded, "text")
    assert index is not None
    samples = [hit.sample for hit in index.search(embedded.rows("image")[0][0], 100)]
    assert sorted(samples) == list(range(100))


def test_recall_is_measured_on_rows_that_are_not_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = folder_of(tmp_path)
    inside: list[int] = []
    recall = neighbour_index.NeighbourIndex.recall

    def watched(self: neighbour_index.NeighbourIndex, queries: np.ndarray, least: np.ndarray) -> float:
        inside.append(len(self.graph))
        return recall(self, queries, least)

    monkeypatch.setattr(neighbour_index.NeighbourIndex, "recall", watched)
    made = build_index(embedded, "image", ONE)
    assert inside == [540, 600]
    assert made == json.loads((tmp_path / "image.index.json").read_text())
    assert {what: one["queries"] for what, one in made["recall@10"].items()} == {"image, held out": 60, "text": 1000}
    assert all(0.9 < one["recall"] <= 1 for one in made["recall@10"].values())


def test_recall_falls_where_candidates_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = folder_of(tmp_path)
    monkeypatch.setattr(neighbour_index, "_candidates", lambda top: 5)
    made = build_index(embedded, "image", ONE)
    assert all(one["recall"] <= 0.5 for one in made["recall@10"].values())


@pytest.mark.parametrize("tile", [7, 64, 1000])
def test_the_kth_best_is_that_of_one_product(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(neighbour_index, "TILE", tile)
    rng = np.random.default_rng(1)
    rows, queries = unit(rng.standard_normal((100, 8))), unit(rng.standard_normal((5, 8)))
    without = np.array([0, 6, 7, 99])
    scores = queries.astype(np.float64) @ rows.T
    np.testing.assert_allclose(kth_best(rows, queries), np.sort(scores, 1)[:, -10], atol=1e-6)
    np.testing.assert_allclose(
        kth_best(rows, queries, without), np.sort(np.delete(scores, without, 1), 1)[:, -10], atol=1e-6
    )


def test_an_index_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    build_index(folder_of(tmp_path, n=50), "image", ONE)
    stale = folder_of(tmp_path, n=50, digest="b")  # embedded again
    with pytest.raises(DataError, match=r"is an index of other embeddings than those in the folder: build it again"):
        open_index(stale, "image")


def test_what_is_damaged_is_told(tmp_path: Path) -> None:
    embedded = folder_of(tmp_path, n=50)
    build_index(embedded, "image", ONE)
    path = tmp_path / "image.index.usearch"
    data = path.read_bytes()
    for damaged in (b"junk" * 100, data[: len(data) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read the index: .*build it again"):
            open_index(embedded, "image")
    (tmp_path / "image.index.json").write_text("{")
    with pytest.raises(DataError, match="cannot read the description of the index"):
        open_index(embedded, "image")


def test_few_rows_are_indexed_without_a_measure(tmp_path: Path) -> None:
    embedded = folder_of(tmp_path, n=4)
    assert build_index(embedded, "image", ONE)["recall@10"] == {}
    index = open_index(embedded, "image")
    assert index is not None
    assert len(index.search(embedded.rows("image")[0][0], 10)) == 4


def test_keys_are_read_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.evaluation.embeddings.search.CHUNK", 13)
    embedded = folder_of(tmp_path, n=30)
    assert embedded.keys([0, 29, 7]) == {0: "key 0 é", 29: "key 29 é", 7: "key 7 é"}
    assert embedded.first_rows("text", [0, 3, 29]) == [0, 6, 58]
