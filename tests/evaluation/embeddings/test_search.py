"""Exact search in embedded rows: any tile gives the same, samples count once, ties, damaged folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.evaluation.embeddings.search import EmbeddedFolder, nearest_owners


@pytest.mark.parametrize("tile", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_any_tile_finds_what_one_product_finds(tile: int, kind: type[np.floating]) -> None:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 5)).astype(kind)
    owners = np.repeat(np.arange(20), 2)
    query = rng.standard_normal(5).astype(np.float32)
    scores = rows.astype(np.float64) @ query
    by_sample = scores.reshape(20, 2).max(1)
    expected = np.argsort(-by_sample)[:6].tolist()
    hits = nearest_owners(rows, owners, query, 6, tile)
    assert [hit.sample for hit in hits] == expected
    assert [hit.row for hit in hits] == [2 * i + int(scores[2 * i + 1] > scores[2 * i]) for i in expected]
    np.testing.assert_allclose([hit.score for hit in hits], by_sample[expected], rtol=1e-5)


@pytest.mark.parametrize("tile", [1, 2, 100])
def test_ties_are_the_earlier_rows_and_few_rows_are_all_found(tile: int) -> None:
    rows = np.ones((9, 3), np.float32)
    query = np.ones(3, np.float32)
    assert [hit.sample for hit in nearest_owners(rows, np.arange(9)[::-1].copy(), query, 3, tile)] == [8, 7, 6]
    assert len(nearest_owners(rows, np.arange(9), query, 30, tile)) == 9


def test_what_is_no_embedded_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted a folder that `mmssl embed` wrote: cannot use manifest.json: [a-z]"):
        EmbeddedFolder.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"rows": {"image": 1}, "what": "features"}))
    with pytest.raises(DataError, match="embed a model with a shared space, without --features"):
        EmbeddedFolder.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"rows": {"image": 2}, "what": "unit-norm embeddings"}))
    folder = EmbeddedFolder.open(tmp_path)
    with pytest.raises(DataError, match="cannot read the rows of 'image'"):
        folder.search("image", np.ones(4, np.float32), 1)
    np.save(tmp_path / "image.npy", np.ones((2, 3), np.float32))
    np.save(tmp_path / "image.samples.npy", np.arange(2))
    with pytest.raises(DataError, match="for a query of 4 numbers: embed again"):
        folder.search("image", np.ones(4, np.float32), 1)
